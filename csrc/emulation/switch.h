// A switch between hosts that are network namespaces of this machine. Each host has one TUN device,
// whose other end is a port here. The switch gives every packet the time that it would have taken
// on cables of a given rate and delay, and hands it over then.
//
// A port is a cable in both directions. A host sends one packet after another at the rate of its
// port. Each port has a queue: what hosts send to it at the same time leaves one after another, and
// what finds no room is dropped. The kernel hands over up to 64 KiB of one TCP stream as one
// packet, as it does to real network cards; the switch counts the headers of all segments, and
// passes the first on while the others come in.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <queue>
#include <random>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"

namespace hier {

struct SwitchPort {
  Fd tun;            // nonblocking, with virtio headers
  uint32_t address;  // IPv4, as it is in a packet's header
  double rate;       // bytes per second, in each direction
};

struct SwitchConfig {
  double delay = 0;   // seconds from host to host, besides what the rate takes
  double jitter = 0;  // seconds: up to so much more, evenly distributed; packets of a host to
                      // another stay in order
  double loss = 0;    // the part of the packets that is lost
  size_t queue_bytes = 16 << 20;  // in front of each port
  uint64_t seed = 0;
};

// What a switch has done. Late: how long after its time a packet was handed over, in seconds: what
// an emulation on this machine adds to the network that was asked for.
struct SwitchReport {
  uint64_t packets = 0, bytes = 0;
  uint64_t lost = 0;        // as asked for
  uint64_t overflowed = 0;  // found no room
  uint64_t unknown = 0;     // to no host of this network
  double late_median = 0, late_99 = 0, late_most = 0;
};

class Switch {
 public:
  Switch(const SwitchConfig& config, std::vector<SwitchPort> ports);
  // Until `stop` can be read from or has been hung up. Throws SystemError.
  void run(int stop);
  SwitchReport report() const;

 private:
  struct Packet {
    std::vector<std::byte> content;  // with its virtio header
    size_t to;
    double wire_bytes;          // of all segments with their headers
    double first_bytes;         // of the first
    Clock::time_point arrived;  // at the switch: its last byte
    Clock::time_point handed_over;
  };
  enum class Step : uint8_t { arrive, hand_over };
  struct Event {
    Clock::time_point at;
    uint64_t number;  // of events at the same time the first comes first
    Step step;
    std::shared_ptr<Packet> packet;
    bool operator>(const Event& other) const {
      return at != other.at ? at > other.at : number > other.number;
    }
  };
  struct Port {
    SwitchPort is;
    Clock::time_point sends_until{};     // the host's direction is busy
    Clock::time_point receives_until{};  // the switch's direction is
    bool waiting = false;                // the host may have had a packet ready while it was busy
  };
  bool serve(Clock::time_point now);
  bool take_from(size_t number);
  void arrive(const std::shared_ptr<Packet>& packet, Clock::time_point now);
  void hand_over(const Packet& packet);
  void push(Clock::time_point at, Step step, std::shared_ptr<Packet> packet);
  void wait(int stop, bool& stopped);

  const SwitchConfig config_;
  std::vector<Port> ports_;
  std::unordered_map<uint32_t, size_t> port_of_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  std::vector<Clock::time_point> last_arrival_;  // by from and to
  std::vector<std::byte> buffer_;
  std::mt19937_64 random_;
  uint64_t num_events_ = 0;
  SwitchReport report_;
  std::vector<uint64_t> late_;  // packets by log2 of their nanoseconds, four to an octave
};

}  // namespace hier
