"""C++ that makes the calls of many ticks, of all chains or of parts of them by several threads."""

from __future__ import annotations

# A step is a kernel of the unit, or an operation of torch's C interface on handles: two or three of them, or with factors.
DRIVER = """
struct Step { int64_t kind; void* function; void** args; double beta; double alpha; };

static int take(const Step& step) {
    void** p = step.args;
    switch (step.kind) {
        case 0: return reinterpret_cast<int (*)(void**)>(step.function)(p);
        case 1: return reinterpret_cast<int (*)(void*, void*, void*)>(step.function)(p[0], p[1], p[2]);
        default:
            return reinterpret_cast<int (*)(void*, void*, void*, void*, double, double)>(step.function)(
                p[0], p[1], p[2], p[3], step.beta, step.alpha);
    }
}

struct Calls { const Step* now; const Step* then; int64_t steps; };

static int64_t once(const Calls& calls, int64_t tick) {
    const Step* set = tick % 2 ? calls.then : calls.now;
    for (int64_t i = 0; i < calls.steps; i++) if (take(set[i])) return i + 1;
    return 0;
}

extern "C" int64_t run(const Calls* calls, int64_t ticks) {
    for (int64_t tick = 0; tick < ticks; tick++) if (int64_t failed = once(*calls, tick)) return failed;
    return 0;
}
"""
TEAM = """
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

namespace {
template <typename Holds>
void until(const Holds& holds) {
    for (int64_t turn = 0; !holds(); turn++) {
        if (turn > 5000) usleep(50);  // others have the cores
        else if (turn > 4000) sched_yield();
    }
}

class Shared {  // a number of all threads; <atomic> and <thread> would take the compiler half a second
    int64_t value;
public:
    Shared(int64_t x) : value(x) {}
    operator int64_t() const { return __atomic_load_n(&value, __ATOMIC_SEQ_CST); }
    void operator=(int64_t x) { __atomic_store_n(&value, x, __ATOMIC_SEQ_CST); }
    void operator++(int) { __atomic_fetch_add(&value, 1, __ATOMIC_SEQ_CST); }
    bool take(int64_t& ticket) {  // the ticket's number becomes the one that is next where it is not
        return __atomic_compare_exchange_n(&value, &ticket, ticket + 1, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
};

template <typename Work> void* call(void* work) {
    (*static_cast<Work*>(work))();
    return nullptr;
}
}

// A ticket is a part and its turn: all its ticks, or with a pool one of them, after which the caller's thread calls the
// pool and opens the next turn. It takes all tickets that nobody else takes, so that it never waits for an idle thread.
extern "C" int64_t run_team(const Calls* parts, int64_t count, const Calls* pool, int64_t ticks, int64_t threads) {
    const int64_t turns = pool ? ticks : 1, each = pool ? 1 : ticks, closed = -1;
    Shared next{0}, open{count}, done{0}, failed{0};
    auto work = [&] {
        for (int64_t ticket = next; ticket < open;) {
            if (!next.take(ticket)) continue;
            const int64_t turn = ticket / count;
            for (int64_t tick = turn * each; tick < (turn + 1) * each && !failed; tick++)
                if (int64_t found = once(parts[ticket % count], tick)) failed = found;
            done++;
            ticket = next;
        }
    };
    auto help = [&] {
        omp_set_num_threads(1);  // of this thread
        while (open != closed) {
            work();
            until([&] { return open == closed || next < open; });
        }
    };
    constexpr int64_t most = 256;
    pthread_t helpers[most];
    int64_t there = 0;
    while (there < most && there + 1 < threads && there + 1 < count) {
        if (pthread_create(&helpers[there], nullptr, call<decltype(help)>, &help)) break;  // as many as there are
        there++;
    }
    for (int64_t turn = 0; turn < turns && !failed; turn++) {
        open = (turn + 1) * count;
        work();
        until([&] { return done == (turn + 1) * count; });
        if (pool && !failed) failed = once(*pool, turn);
    }
    open = closed;
    while (there) pthread_join(helpers[--there], nullptr);
    return failed;
}
"""
