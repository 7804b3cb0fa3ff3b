from wan_train.core.launch.agent import Ended, RunMachine
from wan_train.core.launch.exits import EXIT_LESS_MEMORY, EXIT_LOST_RANK
from wan_train.core.launch.failures import failure


def sentence(*ended, line="it broke"):
    places = [RunMachine("host-a", ("cuda:0", "cuda:1")), RunMachine("host-b", ("cuda:2", "cuda:3"))]
    return failure(ended, places, 1, lambda _rank: f"first\n{line}\n\n")


def test_the_sentence_names_the_rank_its_gpu_and_its_machine():
    killed = sentence(Ended(0, 2, EXIT_LOST_RANK), Ended(1, 3, -9))
    assert killed.startswith("rank 3 (cuda:3 of host-b) was killed by SIGKILL (when main memory runs out")
    assert "The last checkpoint is kept" in killed
    aborted = sentence(Ended(1, 3, -6), line="terminate called: CUDA error: an illegal memory access was encountered")
    assert aborted.startswith(
        "rank 3 (cuda:3 of host-b) was killed by SIGABRT, and the others ended with it. Before, its GPU had failed (CUDA "
        "error: an illegal memory access was encountered). The last checkpoint is kept"
    )
    waited = sentence(Ended(0, 2, -6), line="[rank2]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)")
    assert waited.startswith(
        "rank 2 (cuda:2 of host-b) was killed by SIGABRT, and the others ended with it. Before, it had waited for the others "
        "in vain: one of them hangs"
    )
    assert sentence(Ended(0, 2, 1)) == "rank 2 (cuda:2 of host-b) ended with an error: it broke"
    assert "lost another rank of the run, which is gone or hangs: it broke." in sentence(Ended(0, 2, EXIT_LOST_RANK))
    assert "has too little memory" in sentence(Ended(0, 2, EXIT_LESS_MEMORY))
