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
#include <thread>
#include <vector>
#include <omp.h>

namespace {
struct Meeting {  // of all threads; who comes last lets the others go on
    std::atomic<int64_t> waiting{0}, round{0};
    void meet(int64_t all) {
        const int64_t now = round.load();
        if (waiting.fetch_add(1) + 1 == all) { waiting = 0; round = now + 1; return; }
        for (int64_t turn = 0; round.load() == now; turn++) if (turn > 4096) std::this_thread::yield();
    }
};
}

// Parts are handed out whole, or tick by tick with a pool: thread 0 calls it while the others wait.
extern "C" int64_t run_team(const Calls* parts, int64_t count, const Calls* pool, int64_t ticks, int64_t threads) {
    std::atomic<int64_t> failed{0}, next{0}, team{0};
    Meeting meeting;
    bool stop = false;
    auto apart = [&] {
        for (int64_t part; (part = next++) < count;)
            for (int64_t tick = 0; tick < ticks && !failed; tick++)
                if (int64_t found = once(parts[part], tick)) failed = found;
    };
    auto pooled = [&](int64_t number) {
        for (int64_t tick = 0; tick < ticks && !stop; tick++) {
            for (int64_t part = number; part < count && !failed; part += team)
                if (int64_t found = once(parts[part], tick)) failed = found;
            meeting.meet(team);
            if (number == 0) {
                if (!failed) failed = once(*pool, tick);
                stop = failed;
            }
            meeting.meet(team);
        }
    };
    auto work = [&](int64_t number) {
        while (!team) std::this_thread::yield();
        if (number) omp_set_num_threads(1);  // of this thread
        if (pool) pooled(number); else apart();
    };
    std::vector<std::thread> others;
    try {
        for (int64_t number = 1; number < threads && number < count; number++) others.emplace_back(work, number);
    } catch (...) {}  // as many as there are
    team = others.size() + 1;
    work(0);
    for (auto& other : others) other.join();
    return failed;
}
"""
