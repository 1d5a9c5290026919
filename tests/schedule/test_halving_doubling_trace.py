"""The golden trace of recursive halving and doubling among eight ranks, as the paper tells it.

Section 4: in the first step rank 0 sends its second half to rank 1 and receives the first half of
rank 1's buffer; the distance doubles and the data halves; the allgather goes the same way back.
"""

from allreduce.schedules import by_name
from allreduce.schedules.drawing import move_text

GOLDEN = """
0+>1[4-7] 1+>0[0-3] 2+>3[4-7] 3+>2[0-3] 4+>5[4-7] 5+>4[0-3] 6+>7[4-7] 7+>6[0-3]
0+>2[2-3] 1+>3[6-7] 2+>0[0-1] 3+>1[4-5] 4+>6[2-3] 5+>7[6-7] 6+>4[0-1] 7+>5[4-5]
0+>4[1] 1+>5[5] 2+>6[3] 3+>7[7] 4+>0[0] 5+>1[4] 6+>2[2] 7+>3[6]
0=>4[0] 1=>5[4] 2=>6[2] 3=>7[6] 4=>0[1] 5=>1[5] 6=>2[3] 7=>3[7]
0=>2[0-1] 1=>3[4-5] 2=>0[2-3] 3=>1[6-7] 4=>6[0-1] 5=>7[4-5] 6=>4[2-3] 7=>5[6-7]
0=>1[0-3] 1=>0[4-7] 2=>3[0-3] 3=>2[4-7] 4=>5[0-3] 5=>4[4-7] 6=>7[0-3] 7=>6[4-7]
"""

# Three ranks: the block of one folds into the block of two in the same round, behind its own sum.
GOLDEN_3 = """
0+>1[1] 1+>0[0] 2+>0[0] 2+>1[1]
0=>1[0] 0=>2[0] 1=>0[1] 1=>2[1]
"""


def rounds(text: str) -> list[list[str]]:
    return [sorted(line.split()) for line in text.strip().splitlines()]


def test_eight_ranks_exchange_as_the_paper_says():
    schedule = by_name("halving_doubling", 8)
    assert [sorted(map(move_text, moves)) for moves in schedule.rounds] == rounds(GOLDEN)


def test_three_ranks_are_two_binary_blocks():
    schedule = by_name("halving_doubling", 3)
    assert [sorted(map(move_text, moves)) for moves in schedule.rounds] == rounds(GOLDEN_3)
    assert list(map(move_text, schedule.rounds[0])) == GOLDEN_3.split()[:4]
