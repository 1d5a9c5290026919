"""Planted faults, each of which the simulation must find: a text in a file of csrc, and another.

What one thread under virtual time cannot show is not here: a missing fence, a data race, a counter
that grows between two looks of one turn.
"""

from __future__ import annotations

from .planting import Mutant

MUTANTS = [
    Mutant(
        "nothing is spilled where ranks exchange a chunk",
        "engine/engine.cc",
        "return moved || spill_exchanges();",
        "return moved;",
    ),
    Mutant(
        "a send does not wait for what it depends on",
        "engine/engine.cc",
        "if (cursor.task->waits[id] > 0) return false;\n    const Step& step",
        "const Step& step",
    ),
    Mutant(
        "a receive does not wait for what it depends on",
        "engine/engine.cc",
        "if (cursor.task->waits[id] > 0) return false;\n  const Step& step",
        "const Step& step",
    ),
    Mutant(
        "the sum of a step is not compared",
        "engine/checksum.h",
        "if (received != trailer()) throw Damaged{};",
        "(void)received;",
    ),
    Mutant(
        "jobs do not end at a multiple of 8 bytes",
        "engine/engine.cc",
        "cursor.padding_left -= n;",
        "cursor.padding_left = 0;",
    ),
    Mutant(
        "a slot is used again one piece early",
        "local/stage.h",
        "return piece < pieces_in_flight() + done_by_all_;\n  }",
        "return piece < pieces_in_flight() + done_by_all_ + 1;\n  }",
    ),
    Mutant(
        "a rank reduces before all have arrived",
        "group/execution.cc",
        "if (!local_->all(State::arrived, number(k))) return false;",
        "if (!local_->reached(0, State::arrived, number(k))) return false;",
    ),
    Mutant(
        "a shard is copied before it is final",
        "group/execution.cc",
        "if (!local_->reached(owner, State::reduced, number(k))) return moved;",
        "if (!local_->reached(owner, State::arrived, number(k))) return moved;",
    ),
    Mutant(
        "symmetric memory is given back while neighbours read it",
        "group/execution.cc",
        "lends_ = !local_->all(State::done, number(num_pieces_ - 1));",
        "lends_ = false;",
    ),
    Mutant(
        "shards of the network are published out of order",
        "group/execution.cc",
        "if (published_ != k || !engine_->finished(piece(k).ticket)) return false;",
        "if (!engine_->finished(piece(k).ticket)) return false;",
    ),
    Mutant(
        "a counter grows and nobody is woken",
        "local/stage.h",
        "bells_->ring_all();",
        "",
    ),
    Mutant(
        "a ring has room again and nobody is woken",
        "transport/shm.cc",
        "(head + n, std::memory_order_release);\n  if (bells_) bells_->ring(peer_);",
        "(head + n, std::memory_order_release);",
    ),
    Mutant(
        "tags are not compared",
        "engine/messages.cc",
        "(receive.tag == kAnyTag || receive.tag == tag)",
        "true",
    ),
    Mutant(
        "an unexpected message is handed on before it is whole",
        "engine/unexpected.cc",
        "} else if (!unexpected->whole) {\n    unexpected->claimed = transfer;\n    return;",
        "} else if (false) {\n    return;",
    ),
    Mutant(
        "an announced message is never granted",
        "engine/unexpected.cc",
        "peer.granted.emplace(unexpected->header.id, transfer);\n"
        "    grant(peer, unexpected->header.id);",
        "peer.granted.emplace(unexpected->header.id, transfer);",
    ),
    Mutant(
        "calls on the same memory run at once",
        "group/lanes.cc",
        "if (run.call.use && !run.call.use->may_begin()) return false;",
        "",
    ),
    Mutant(
        "reads are in nobody's way",
        "group/order.h",
        "return overlaps(other) && (written || other.written);",
        "return overlaps(other) && other.written && written && false;",
    ),
    Mutant(
        "an error is told to nobody",
        "group/member.cc",
        "failure_.set(error, frame.message(), [&] { watch_.tell(frame); });",
        "failure_.set(error, frame.message(), [] {});",
    ),
    Mutant(
        "nobody looks for the reason behind a broken stream",
        "group/watch.cc",
        "if (present && !broken.unanswered && wait && control_.any_open()) return nullptr;",
        "(void)present, (void)wait;",
    ),
    Mutant(
        "a goodbye is taken for the end of the data",
        "group/watch.cc",
        "return messages_.ended(rank);",
        "return control_.presence(rank) != ControlLinks::Presence::present;",
    ),
    Mutant(
        "deadlines are ignored",
        "group/watch.cc",
        "if (now >= run.deadline) time_out(run);",
        "(void)run;",
    ),
    Mutant(
        "nobody asks whether hosts answer",
        "group/watch.cc",
        "  check_silence();\n",
        "",
    ),
    Mutant(
        "a dead neighbour is not missed",
        "group/member.cc",
        "if (gone && !moved) watch_.check_presence();",
        "(void)gone;",
    ),
    Mutant(
        "messages outlive a failure",
        "group/member.cc",
        "    transfer->ended(ended_with_);\n  }\n  ending_.all",
        "  }\n  ending_.all",
    ),
    Mutant(
        "a rank leaves without a goodbye",
        "group/watch.cc",
        "  tell(goodbye);\n",
        "",
    ),
    Mutant(
        "a write that fails hides what has arrived",
        "engine/messages.cc",
        "if (sends) broken(rank, why);",
        "if (sends || waits_for(rank)) broken(rank, why);",
    ),
    Mutant(
        "parts of a relayed alltoall are mixed up",
        "group/relay.cc",
        "append(relay.out, place(other, me), offset, part);",
        "append(relay.out, place(me, other), offset, part);",
    ),
    Mutant(
        "symmetric memory of a neighbour that has failed is trusted",
        "group/execution.cc",
        "return doubtful_ = local_ && is_symmetric() && local_->failed().has_value();",
        "return false;",
    ),
    Mutant(
        "a rank that waits for one that is gone does not try to connect",
        "group/watch.cc",
        "if (run || message) channel->want();",
        "(void)run, (void)message;",
    ),
    Mutant(
        "a rank that left without a word poisons the group",
        "group/member.cc",
        "if (!watch_.may_have_left(rank) || !messages_->excuse(rank)) ",
        "if (true) ",
    ),
    Mutant(
        "a rank that waits for long does not try to connect",
        "group/watch.cc",
        "return Seconds(now - late.begun).count() >= config_.status_after;",
        "return (void)late, false;",
    ),
]
