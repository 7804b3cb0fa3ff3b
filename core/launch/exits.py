"""How the processes of the command line end: training processes, and commands. The one place for these numbers."""

EXIT_FINISHED = 0  # what was asked for is done
EXIT_ERROR = 1  # one sentence on standard error says what is wrong and what to do
EXIT_USAGE = 2  # the command line can't be understood; argparse says what of it
EXIT_STOPPED = 3  # training was stopped, with a checkpoint: the same command goes on
EXIT_LOST_RANK = 4  # one of several GPUs' processes was lost: the same command goes on from the last checkpoint
EXIT_LESS_MEMORY = (
    5  # the ranks ask to be started again: the next start plans with less memory, from the last checkpoint
)
EXIT_INTERRUPTED = 130  # Ctrl+C where there is no checkpoint to write; as shells have it, 128 + SIGINT

EXIT_CODES = {
    EXIT_FINISHED: "done",
    EXIT_ERROR: "something is wrong; a sentence says what, and what to do",
    EXIT_USAGE: "the command line can't be understood",
    EXIT_STOPPED: "training was stopped with a checkpoint; the same command goes on",
    EXIT_LOST_RANK: "the process of one of several GPUs was lost; the same command goes on from the last checkpoint",
    EXIT_LESS_MEMORY: "a GPU ran out of memory; the same command goes on, with a plan that takes less",
    EXIT_INTERRUPTED: "interrupted with Ctrl+C",
}
