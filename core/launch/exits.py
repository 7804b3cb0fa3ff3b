"""How the processes of the command line end: training processes, and commands. The one place for these numbers."""

EXIT_FINISHED = 0  # what was asked for is done
EXIT_ERROR = 1  # one sentence on standard error says what is wrong and what to do
EXIT_USAGE = 2  # the command line can't be understood; argparse says what of it
EXIT_STOPPED = 3  # training was stopped, with a checkpoint: the same command goes on
EXIT_LOST_RANK = 4  # of a rank: another one is gone, or has been silent for too long
EXIT_LESS_MEMORY = 5  # of a rank: start all ranks again, from the checkpoint, with a plan of less memory
EXIT_INTERRUPTED = 130  # Ctrl+C where there is no checkpoint to write; as shells have it, 128 + SIGINT

EXIT_CODES = {
    EXIT_FINISHED: "done",
    EXIT_ERROR: "something is wrong; a sentence says what, and what to do",
    EXIT_USAGE: "the command line can't be understood",
    EXIT_STOPPED: "training was stopped with a checkpoint; the same command goes on",
    EXIT_LOST_RANK: "of one process of several: another one is gone",
    EXIT_LESS_MEMORY: "of one process of several: all are started again with a plan of less memory",
    EXIT_INTERRUPTED: "interrupted with Ctrl+C",
}
