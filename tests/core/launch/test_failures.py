from wan_train.core.launch.agent import Ended, RunMachine
from wan_train.core.launch.exits import EXIT_LESS_MEMORY, EXIT_LOST_RANK
from wan_train.core.launch.failures import failure


def sentence(*ended, line="it broke"):
    places = [RunMachine("host-a", ("cuda:0", "cuda:1")), RunMachine("host-b", ("cuda:2", "cuda:3"))]
    return failure(ended, places, 1, lambda _rank: line)


def test_the_sentence_names_the_rank_its_gpu_and_its_machine():
    killed = sentence(Ended(0, 2, EXIT_LOST_RANK), Ended(1, 3, -9))
    assert killed.startswith("rank 3 (cuda:3 of host-b) was killed by SIGKILL (when main memory runs out")
    assert "The last checkpoint is kept" in killed
    assert sentence(Ended(0, 2, 1)) == "rank 2 (cuda:2 of host-b) ended with an error: it broke"
    assert "lost another rank of the run, which is gone or hangs: it broke." in sentence(Ended(0, 2, EXIT_LOST_RANK))
    assert "has too little memory" in sentence(Ended(0, 2, EXIT_LESS_MEMORY))
