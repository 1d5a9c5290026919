// What must hold at the end of a life.
#include <algorithm>

#include "base/error.h"
#include "life.h"

namespace hier::simulation {

namespace {

// What is known of an error.
struct Known {
  std::string kind, text;
  int culprit = -1;
};

Known known(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const PeerError& e) {
    return {"peer", e.what(), e.rank};
  } catch (const Timeout& e) {
    return {"timeout", e.what()};
  } catch (const MismatchError& e) {
    return {"mismatch", e.what()};
  } catch (const IntegrityError& e) {
    return {"integrity", e.what()};
  } catch (const AbortedError& e) {
    return {"aborted", e.what()};
  } catch (const std::exception& e) {
    return {"other", e.what()};
  }
}

// After another rank has failed a call ends within kSoon. Where nobody is left to tell, a rank that
// only waits asks for a connection after a second, learns that nobody answers, and gives the reason
// a second to come by way of others; it looks around every 50 ms.
constexpr auto kSoon = std::chrono::milliseconds(600);
constexpr auto kSoonAfar = std::chrono::milliseconds(2200);

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

// Whether an error of this rank's can come of the fault.
bool Life::explains(const Fault& fault, const std::exception_ptr& error, int rank) const {
  const Known e = known(error);
  const auto node = [&](int r) { return scenario_.node_of_rank[static_cast<size_t>(r)]; };
  const bool of_pair = e.culprit == fault.rank || e.culprit == fault.other;
  switch (fault.kind) {
    case Fault::Kind::kill:
      return e.kind == "peer" && e.culprit == fault.rank;
    case Fault::Kind::leave:
      if (contains(e.text, "no rank sends it")) return true;
      return (e.kind == "peer" && e.culprit == fault.rank && contains(e.text, "left the group")) ||
             (rank == fault.rank && e.kind == "aborted" && contains(e.text, "closed with"));
    case Fault::Kind::jump:  // there is no time left to hear the reason of another fault
      if (e.kind == "peer" && contains(e.text, "probably died")) {
        return scenario_.faults.size() > 1 || scenario_.has_stranger();
      }
      [[fallthrough]];
    case Fault::Kind::pause:
      return e.kind == "timeout" && Seconds(fault.lasts).count() > scenario_.timeout / 2;
    case Fault::Kind::abort:
      return e.kind == "aborted" &&
             contains(e.text, "rank " + std::to_string(fault.rank) + " gave up");
    case Fault::Kind::reset:
      return e.kind == "peer" && of_pair;
    case Fault::Kind::black_hole:
      return e.kind == "peer" && e.culprit >= 0 &&
             (node(e.culprit) == node(fault.rank) || node(e.culprit) == node(fault.other));
    case Fault::Kind::flip:
      return e.kind == "integrity" && contains(e.text, "rank " + std::to_string(fault.rank));
    case Fault::Kind::flip_control:
      return e.kind == "peer" && of_pair;
    case Fault::Kind::no_memory:
      return (contains(e.text, "bad_alloc") || contains(e.text, "cannot allocate")) &&
             (rank == fault.rank || contains(e.text, "rank " + std::to_string(fault.rank)));
  }
  return false;
}

void Life::check_error(const Rank::Made& made, int rank) const {
  const Known e = known(made.error);
  const bool hopeless = scenario_.operations[made.operation].hopeless;
  if (hopeless && contains(e.text, "no rank sends it")) return;
  if (scenario_.has_stranger() &&
      (e.kind == "mismatch" || contains(e.text, "this group has failed")))
    return;
  // Those who could have passed on why had left.
  if (contains(e.text, "those who knew have left too")) return;
  if (scenario_.sparse && contains(e.text, "no rank sends it")) return;
  if (scenario_.sparse && e.kind == "peer" && e.culprit >= 0 && at(e.culprit).failed()) return;
  // What comes after the first error repeats it.
  for (size_t i = 0; i < scenario_.faults.size(); ++i) {
    if (!applied_[i]) continue;
    if (explains(scenario_.faults[i], made.error, rank)) return;
    if (e.kind == "aborted" && contains(e.text, "this group has failed")) return;
  }
  throw Wrong("call " + std::to_string(made.operation) + " of rank " + std::to_string(rank) +
              " ended with an error that nothing explains: " + e.kind + ", culprit " +
              std::to_string(e.culprit) + ": " + e.text);
}

// When the first rank told the others of an error; never, where those may hear of it late.
Clock::time_point Life::first_told() const {
  const bool late = std::ranges::any_of(scenario_.faults, [](const Fault& fault) {
    return fault.kind == Fault::Kind::black_hole || fault.kind == Fault::Kind::pause;
  });
  auto first = Clock::time_point::max();
  for (const auto& rank : ranks_) {
    for (const auto& call : rank->made()) {
      if (late || !call.error || scenario_.operations[call.operation].hopeless) continue;
      // Who closes its group with calls in flight tells nobody of its own error, and a receive that
      // nobody answers ends alone.
      const std::string text = known(call.error).text;
      if (contains(text, "closed with") || contains(text, "no rank sends it")) continue;
      first = std::min(first, *call.ended);
    }
  }
  return first;
}

// By its deadline, and soon after another rank has told its error.
void Life::check_time(const Rank::Made& made, int rank, Clock::time_point told) const {
  const auto check = [&](Clock::duration late, Clock::duration most, const std::string& behind) {
    if (late <= most) return;
    throw Wrong("call " + std::to_string(made.operation) + " of rank " + std::to_string(rank) +
                " ended " + std::to_string(Seconds(late).count()) + " s after " + behind);
  };
  const auto deadline = std::max(after(scenario_.timeout, made.at), at(rank).paused_until());
  check(*made.ended - deadline, std::chrono::seconds(1), "its deadline");
  if (told == Clock::time_point::max()) return;
  check(*made.ended - std::max(told, made.at),
        (scenario_.on_demand ? kSoonAfar : kSoon) + 4 * scenario_.most_delay,
        "another rank had failed");
}

void Life::tell_ends() const {
  for (const auto& rank : ranks_) {
    for (const auto& made : rank->made()) {
      std::string text = "rank " + std::to_string(&rank - ranks_.data()) + ", call " +
                         std::to_string(made.operation) + ": ";
      if (!made.ended) {
        say(text + "no end");
        continue;
      }
      text += "ended at " + std::to_string(Seconds(*made.ended - kBegin).count()) + " s";
      say(text + (made.error ? ": " + known(made.error).text : ", well"));
    }
  }
}

void Life::check_ends() const {
  if (trace_) tell_ends();
  const auto told = first_told();
  for (int rank = 0; rank < scenario_.world_size(); ++rank) {
    const Rank& r = at(rank);
    for (const auto& made : r.made()) {
      if (!made.ended) {
        if (r.killed()) continue;
        throw Wrong("call " + std::to_string(made.operation) + " of rank " + std::to_string(rank) +
                    " has no end");
      }
      if (made.error) check_error(made, rank);
      check_time(made, rank, told);
    }
    if (const std::string wrong = r.check_memory(); !wrong.empty()) throw Wrong(wrong);
  }
}

}  // namespace hier::simulation
