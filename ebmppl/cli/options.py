"""The options of ``ebmppl sample``, in the groups in which the help shows them, and the examples below it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

_ENERGY, _KERNEL, _RUN, _OUTPUT = "What to sample", "Kernel", "Run", "Output"

Spec = Annotated[
    str,
    Argument(
        metavar="FILE.py:NAME",
        help=(
            "A Python file and the name in it of an energy, a function or a Pyro model; or a model of ebmppl.models, as "
            '"Ising(lattice=(8, 8), coupling=0.4)" or "ProductOfExperts([StudentTExperts(8, 4), GaussianExperts(4, 4)])" '
            "(lists of numbers become tensors)."
        ),
        show_default=False,
    ),
]
EventShape = Annotated[
    str | None,
    Option(
        "--event-shape",
        metavar="SHAPE",
        rich_help_panel=_ENERGY,
        help=(
            "For a plain function x -> energy in nats: the shape of one point, as 2 or 3,4, or of named sites, as mu=,theta=8 "
            "(empty: a scalar; the function then gets a dict)."
        ),
    ),
]
Support = Annotated[
    list[str] | None,
    Option(
        "--support",
        metavar="[SITE=]SUPPORT",
        rich_help_panel=_ENERGY,
        help=(
            "Where a plain function's points live: positive, unit_interval, simplex ... (torch.distributions.constraints) or "
            "bounds such as 0:5 or 0: (open end), or spin, boolean, integers such as 0..3; by site as tau=positive. May be "
            "repeated. Without it: all real numbers."
        ),
    ),
]
IsPyro = Annotated[
    bool,
    Option(
        "--pyro",
        rich_help_panel=_ENERGY,
        help=(
            "Take NAME for a Pyro model without looking. A callable that needs no arguments and reaches a pyro.sample is taken "
            "for one anyway."
        ),
    ),
]
Dtype = Annotated[
    Literal["float32", "float64"] | None,
    Option(
        "--dtype",
        rich_help_panel=_ENERGY,
        help=(
            "Floating point type of the run, and torch's default while FILE is imported. Without it: that of the energy."
        ),
    ),
]

KernelName = Annotated[
    str | None,
    Option(
        "--kernel",
        "-k",
        metavar="[SITE=]NAME",
        rich_help_panel=_KERNEL,
        show_default=False,
        help=(
            "nuts (tunes itself; what a continuous energy gets), hmc, mala, or langevin (no accept step: biased by its step "
            "size). For discrete energies: gibbs (what these get), metropolis (single flips), gwg (Gibbs with gradients, one "
            "flip a draw), dmala (discrete Langevin), and of ferromagnets swendsen-wang and wolff (clusters). For mixed "
            "energies one by site, as s=gibbs,x+y=nuts (what these get)."
        ),
    ),
]
Betas = Annotated[
    str | None,
    Option(
        "--betas",
        metavar="BETAS",
        rich_help_panel=_KERNEL,
        show_default=False,
        help=(
            "Parallel tempering around the kernel (mala or a discrete one): how many replicas, as 8, or their inverse "
            "temperatures, as 0.2,0.5,1."
        ),
    ),
]
StepSize = Annotated[
    float | None,
    Option(
        "--step-size",
        rich_help_panel=_KERNEL,
        show_default=False,
        help=("Where adaptation begins; langevin keeps it and needs it."),
    ),
]
NumSteps = Annotated[
    int | None,
    Option(
        "--num-steps",
        rich_help_panel=_KERNEL,
        show_default=False,
        help=("hmc: the longest trajectory in leapfrog steps."),
    ),
]
TrajectoryLength = Annotated[
    float | None,
    Option(
        "--trajectory-length",
        rich_help_panel=_KERNEL,
        help=("hmc: the longest trajectory, instead of --num-steps."),
        show_default=False,
    ),
]
FullMass = Annotated[
    bool,
    Option(
        "--full-mass",
        rich_help_panel=_KERNEL,
        help=("Adapt a dense mass matrix: for correlated energies of few dimensions."),
    ),
]
TargetAccept = Annotated[
    float | None,
    Option(
        "--target-accept-prob",
        rich_help_panel=_KERNEL,
        show_default=False,
        help=("Acceptance rate that adaptation aims at; nearer to 1 means smaller steps and fewer divergences."),
    ),
]
MaxTreeDepth = Annotated[
    int | None,
    Option(
        "--max-tree-depth", rich_help_panel=_KERNEL, show_default=False, help=("nuts: most doublings of a trajectory.")
    ),
]

Backend = Annotated[
    str,
    Option(
        "--backend",
        rich_help_panel=_RUN,
        help="How ticks run: auto (by counts), eager, inductor (compiled), cudagraph (compiled and captured, on a GPU).",
    ),
]
Chains = Annotated[int, Option("--chains", "-c", rich_help_panel=_RUN, help="Chains, all advanced together.")]
Draws = Annotated[int, Option("--draws", "-n", rich_help_panel=_RUN, help="Draws to keep of each chain.")]
Warmup = Annotated[
    int | None,
    Option(
        "--warmup",
        "-w",
        rich_help_panel=_RUN,
        show_default=False,
        help=("Draws of each chain to adapt with, before; as many as --draws if not given."),
    ),
]
Thinning = Annotated[int, Option("--thinning", rich_help_panel=_RUN, help="Keep every so many-th draw.")]
Seed = Annotated[
    int | None,
    Option(
        "--seed",
        "-s",
        rich_help_panel=_RUN,
        show_default=False,
        help=("Makes the run reproducible; FILE is imported with the global generators at this seed, too."),
    ),
]
Quiet = Annotated[bool, Option("--quiet", "-q", rich_help_panel=_RUN, help="No progress bar.")]

Out = Annotated[
    Path | None,
    Option(
        "--out",
        "-o",
        metavar="FILE.nc",
        rich_help_panel=_OUTPUT,
        help=("Write draws and statistics as netCDF, for ArviZ and for 'ebmppl summary'."),
    ),
]
Save = Annotated[
    Path | None,
    Option(
        "--save",
        metavar="FILE.pt",
        rich_help_panel=_OUTPUT,
        help=("Write the run itself, for MCMC.load(FILE.pt, kernel).run(num_samples=more) in Python."),
    ),
]
Plot = Annotated[
    Path | None,
    Option("--plot", metavar="FILE.png", rich_help_panel=_OUTPUT, help=("Write a trace plot; .png, .pdf, .svg ...")),
]
RankPlot = Annotated[
    Path | None,
    Option(
        "--rank-plot",
        metavar="FILE.png",
        rich_help_panel=_OUTPUT,
        help=("Write a rank plot: how evenly the chains share the draws."),
    ),
]
LatticePlot = Annotated[
    Path | None,
    Option(
        "--lattice-plot",
        metavar="FILE.png",
        rich_help_panel=_OUTPUT,
        help=("Write pictures of states, for points of two axes such as lattices of spins."),
    ),
]
Statistic = Annotated[
    list[str] | None,
    Option(
        "--statistic",
        metavar="NAME",
        rich_help_panel=_OUTPUT,
        help=(
            "Judge a statistic too: magnetisation, absolute_magnetisation, or a function in FILE of a batch of points. May be "
            "repeated."
        ),
    ),
]
Prob = Annotated[
    float, Option("--prob", rich_help_panel=_OUTPUT, help="Probability mass of the intervals in the summary.")
]
Debug = Annotated[bool, Option("--debug", help="Show the traceback of an error.")]

SAMPLE_EXAMPLES = """
[bold]Examples[/bold]

  An Energy object; only the summary is wanted:

    ebmppl sample model.py:energy

  A function of points of two numbers; draws and a trace plot are kept:

    ebmppl sample model.py:f --event-shape 2 --out draws.nc --plot trace.png

  A function of the sites mu (a scalar), theta (eight numbers) and tau > 0:

    ebmppl sample model.py:f --event-shape mu=,theta=8,tau= --support tau=0:

  A Pyro model (its data bound by functools.partial), many short chains:

    ebmppl sample model.py:posterior --chains 512 --draws 100 --seed 0

  Spins on a lattice, by Gibbs sampling; with replicas at higher temperatures:

    ebmppl sample "Ising(lattice=(32, 32), coupling=0.4)" --statistic magnetisation --lattice-plot spins.png

    ebmppl sample "Ising(lattice=(32, 32), coupling=0.5)" --betas 8

  Spins s and numbers x and y of one energy, with a kernel for each:

    ebmppl sample model.py:energy --kernel s=gibbs,x+y=hmc --num-steps 8

  HMC of at most 20 leapfrog steps, in double precision:

    ebmppl sample model.py:energy -k hmc --num-steps 20 --dtype float64

[bold]Exit codes[/bold]

  0    done

  1    what you can mend: one line on stderr says what was wanted, what came

  2    usage: an unknown option, a missing argument, a number that is none

  130  Ctrl-C; draws that every chain has by then are summarised and written
"""

SUMMARY_EXAMPLES = """
[bold]Example[/bold]

  ebmppl summary draws.nc --prob 0.95
"""
