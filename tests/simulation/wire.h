// One direction of a connection under virtual time: bytes arrive in order, some time after they
// were written, in any portions. It can be ended, reset, be a black hole, or damage a bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "memory.h"
#include "random.h"
#include "transport/channel.h"

namespace hier::simulation {

enum class Carries : uint8_t { data, messages, control };

struct WireOptions {
  Clock::duration delay{};
  size_t capacity = 1 << 16;  // bytes written and not read
  size_t most = SIZE_MAX;     // a call moves at most so many
  bool network = true;
  Carries carries = Carries::data;
  bool checked = true;
  Clock::duration dead_after = std::chrono::seconds(4);  // as the kernel's keepalive is set
};

// The virtual time, and who has to be told that a wire has something new at that time.
struct Timing {
  Clock::time_point now{};
  std::function<void(Clock::time_point, int rank, Carries)> wake;
};

class Wire {
 public:
  Wire(Timing& timing, Random& random, WireOptions options, int writer, int reader)
      : timing_(timing), random_(random), options_(options), writer_(writer), reader_(reader) {}

  size_t write(std::span<const Bytes> parts);
  // What has arrived, in place; it starts at a multiple of 8 in memory where it does in the stream.
  Bytes arrived();
  void consume(size_t n);
  size_t room(size_t wanted);  // how much of it a call may read
  // Nothing more comes, once all is read. Throws ChannelBroken where the reader has to be told.
  void check_open(size_t wanted);

  void end();                         // the writer has closed it, or died
  void abandon();                     // the reader has
  void reset();                       // both ends see it broken at once; what is under way is lost
  void start_drop();                  // from now on nothing arrives
  void flip_next() { flip_ = true; }  // a bit of what is written next
  // No answer comes back over the other direction: what is written looks lost to the writer.
  void start_unanswered() { unanswered_from_ = timing_.now; }
  double seconds_unanswered() const;
  const WireOptions& options() const { return options_; }
  bool in_black_hole() const { return dropping_ || unanswered_from_; }

 private:
  struct Portion {
    Clock::time_point arrives;
    size_t bytes;
  };
  void check_answers() const;

  Timing& timing_;
  Random& random_;
  const WireOptions options_;
  const int writer_, reader_;
  std::vector<std::byte> data_;    // from a stream offset that is a multiple of 8
  size_t read_ = 0, arrived_ = 0;  // offsets in data_
  std::deque<Portion> under_way_;
  std::deque<Portion> acknowledged_;  // read, and on their way back as room for the writer
  size_t outstanding_ = 0;            // written, and not acknowledged
  bool reset_ = false, flip_ = false, full_ = false;
  std::optional<Clock::time_point> ended_at_, abandoned_at_, dropping_, dropped_since_,
      unanswered_from_, unanswered_since_;
};

// One rank's end of the connections to another one, where they are made at their first use.
struct End {
  enum class State : uint8_t { waiting, connected, refused, unanswered };
  State state = State::connected;
  std::function<void()> want;  // null once it was called
  bool met = false;            // the two processes are connected, if the rank has yet to hear of it
  void check_reachable() const;
};

class SimulatedChannel final : public Channel {
 public:
  SimulatedChannel(Wire& out, Wire& in, End& end) : out_(out), in_(in), end_(end) {}
  ~SimulatedChannel() override { out_.end(), in_.abandon(); }

  bool connected() const override { return end_.state == End::State::connected; }
  void want() override {
    const Unrationed elsewhere;
    if (const auto want = std::exchange(end_.want, nullptr)) want();
  }
  size_t try_write(std::span<const Bytes> parts) override {
    if (!connected()) {
      end_.check_reachable();
      want();
      return 0;
    }
    const size_t n = out_.write(parts);
    bytes_sent += n;
    return n;
  }
  size_t try_read(std::span<std::byte> dst) override;
  Bytes peek(size_t wanted) override;
  void consume(size_t n) override { in_.consume(n); }
  int fd() const override { return -1; }
  bool over_network() const override { return in_.options().network; }
  bool checked() const override { return in_.options().checked; }
  double seconds_unanswered() const override { return out_.seconds_unanswered(); }

 private:
  Wire &out_, &in_;
  End& end_;
};

}  // namespace hier::simulation
