// What goes wrong while a group is at work: other ranks' errors, disagreements, deaths, hosts that
// do not answer, deadlines. Each is thrown to the thread that drives, which owns all of this.
#pragma once

#include <poll.h>

#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "engine/messages.h"
#include "group/config.h"
#include "group/lanes.h"
#include "group/links.h"
#include "group/topology.h"
#include "transport/control.h"

namespace hier {

class Watch {
 public:
  // What is passed by reference outlives this.
  Watch(const GroupConfig& config, const Topology& topology, const Lanes& lanes,
        const Messages& messages, const Channels& message_channels, Channels control);

  // What needs no attention at every turn: control links, silent hosts, deadlines.
  void look_around(Clock::time_point now);
  Clock::time_point looked() const { return looked_; }  // when it last did
  // While this rank is in no call: what others must know is passed on, and kept for the next call.
  void pass_on();
  // Who is known to have left or died. What else has come is passed on and kept, as above.
  std::vector<int> gone_ranks();
  // Throws BrokenStream where what is in flight needs a rank that is gone. To be called when all
  // has been read that gone ranks have sent, and nothing moves.
  void check_presence() const;
  bool anybody_gone() const { return control_.anybody_gone() || messages_.any_ended(); }
  // The error behind a broken stream; null as long as it may still come over a control link.
  std::exception_ptr cause_of(const BrokenStream& broken, bool wait);
  void poll_fds(std::vector<pollfd>& fds) const { control_.poll_fds(fds); }
  bool hears_of_all() const { return !control_.sparse(); }  // by links of its own
  // Of a rank that is gone: nobody who knows how was left to tell this one.
  bool unknown(int rank) const;
  bool may_have_left(int rank) const;        // in order
  Clock::time_point first_deadline() const;  // of what is in flight

  void tell(const ControlFrame& frame) noexcept { control_.broadcast(frame); }  // from any thread
  // Says goodbye. Returns what another rank has said last that no call has met; "" if nothing.
  std::string leave(bool failed);

 private:
  void receive();
  void receive(const std::function<void(int rank, const ControlFrame&)>& handle);
  void handle(int rank, const ControlFrame& frame);
  void tell_status(Run& run, Clock::time_point now);
  void hear_entered(int rank, uint32_t run);
  bool has_entered(int rank, uint32_t run) const;
  void check_deadlines(Clock::time_point now) const;
  [[noreturn]] void time_out(const Run& run) const;
  [[noreturn]] void time_out(const Transfer& transfer) const;
  bool gone(int rank) const;
  void ask_for_needed(Clock::time_point now) const;
  void check_presence(const Lane& lane) const;
  void check_presence(const Run& run) const;
  void check_messages() const;
  void check_silence();
  std::optional<std::string> in_flight() const;
  std::string fate_of(int rank, bool unanswered) const;

  const GroupConfig& config_;
  const Topology& topology_;
  const Lanes& lanes_;
  const Messages& messages_;
  const Channels& message_channels_;
  ControlLinks control_;
  std::deque<std::pair<int, ControlFrame>> kept_;  // by pass_on()
  std::map<int, RunHeader> statuses_;  // last status of each rank that has told this one
  std::map<int, uint32_t> entered_;    // the latest run in which a rank is known to be
  bool entered_news_ = false;          // that others may not have heard
  Clock::time_point looked_{};
  Clock::time_point heard_{};  // when it last asked whether the other hosts answer
};

}  // namespace hier
