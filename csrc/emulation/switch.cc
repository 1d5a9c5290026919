// Packets through a switch, each at its time.
#include "emulation/switch.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <utility>

#include "base/error.h"

namespace hier {

namespace {

// What stands before each packet: virtio_net_hdr of linux/virtio_net.h, which is no C++.
struct VirtioHeader {
  uint8_t flags, gso_type;
  uint16_t header_bytes, gso_size, checksum_start, checksum_offset;
};
constexpr size_t kVirtioBytes = sizeof(VirtioHeader);
static_assert(kVirtioBytes == 10);
constexpr size_t kPacketBytesMax = 65536 + kVirtioBytes;
constexpr int kBatch = 64;  // packets of one host, before the others have their turn
constexpr size_t kIpBytes = 20, kIpDestination = 16, kIpVersion4 = 4;
constexpr size_t kTcpOffset = 12;  // of the byte that has the length of its header
constexpr double kPerOctave = 4;

Clock::duration duration(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(Seconds(seconds));
}

size_t number_at(std::span<const std::byte> bytes, size_t at) {
  return std::to_integer<size_t>(bytes[at]);
}

struct Sizes {
  double wire, first;
};

// Of an IP packet behind a virtio header: one that TCP has yet to cut has a header for each
// segment.
Sizes sizes_of(std::span<const std::byte> packet) {
  VirtioHeader virtio;
  std::memcpy(&virtio, packet.data(), sizeof virtio);
  const auto ip = packet.subspan(kVirtioBytes);
  const auto whole = static_cast<double>(ip.size());
  if (virtio.gso_type == 0 || virtio.gso_size == 0) return {whole, whole};
  const size_t ip_bytes = 4 * (number_at(ip, 0) & 0xf);
  if (ip.size() < ip_bytes + kIpBytes) return {whole, whole};
  const auto headers =
      static_cast<double>(ip_bytes + 4 * (number_at(ip, ip_bytes + kTcpOffset) >> 4));
  const double segments = std::max(1.0, std::ceil((whole - headers) / virtio.gso_size));
  return {whole + (segments - 1) * headers, std::min(whole, headers + virtio.gso_size)};
}

}  // namespace

Switch::Switch(const SwitchConfig& config, std::vector<SwitchPort> ports)
    : config_(config),
      last_arrival_(ports.size() * ports.size()),
      buffer_(kPacketBytesMax),
      random_(config.seed) {
  for (SwitchPort& port : ports) {
    port_of_[port.address] = ports_.size();
    ports_.push_back({std::move(port)});
  }
}

void Switch::run(int stop) {
  for (bool stopped = false; !stopped;) {
    const auto now = Clock::now();
    if (!serve(now)) wait(stop, stopped);
  }
}

// All that is due; false if nothing was.
bool Switch::serve(Clock::time_point now) {
  bool served = false;
  for (int i = 0; i < kBatch && !events_.empty() && events_.top().at <= now; ++i, served = true) {
    const Event event = events_.top();
    events_.pop();
    if (event.step == Step::arrive) {
      arrive(event.packet, event.at);
    } else {
      hand_over(*event.packet);
    }
  }
  for (size_t i = 0; i < ports_.size(); ++i) {
    for (int taken = 0; taken < kBatch && ports_[i].sends_until <= now; ++taken, served = true) {
      if (!take_from(i)) break;
    }
  }
  return served;
}

// The host's next packet. Where one was ready as soon as the cable was free, it began then, however
// late this switch comes to see it.
bool Switch::take_from(size_t number) {
  Port& port = ports_[number];
  const ssize_t n = ::read(port.is.tun.get(), buffer_.data(), buffer_.size());
  if (n < 0) {
    if (errno != EAGAIN && errno != EINTR) throw SystemError(errno, "read from a host's device");
    port.waiting = false;
    return false;
  }
  const std::span<const std::byte> content(buffer_.data(), static_cast<size_t>(n));
  if (content.size() < kVirtioBytes + kIpBytes) return true;
  const auto ip = content.subspan(kVirtioBytes);
  if (number_at(ip, 0) >> 4 != kIpVersion4) return true;
  const auto sizes = sizes_of(content);
  // The clock is read anew: much may have been handed over since `now`.
  const auto begun = std::exchange(port.waiting, true) ? port.sends_until : Clock::now();
  port.sends_until = begun + duration(sizes.wire / port.is.rate);
  uint32_t address;
  std::memcpy(&address, ip.data() + kIpDestination, sizeof address);
  const auto to = port_of_.find(address);
  if (to == port_of_.end()) {
    ++report_.unknown;
    return true;
  }
  auto packet = std::make_shared<Packet>();
  packet->content.assign(content.begin(), content.end());
  packet->to = to->second;
  packet->wire_bytes = sizes.wire, packet->first_bytes = sizes.first;
  std::uniform_real_distribution<double> part;
  const auto delay = duration(config_.delay + config_.jitter * part(random_));
  const auto first_sent = begun + duration(sizes.first / port.is.rate);
  auto& last = last_arrival_[number * ports_.size() + to->second];
  last = std::max(last, first_sent + delay);
  packet->arrived = last + (port.sends_until - first_sent);
  push(last, Step::arrive, std::move(packet));
  return true;
}

// At its port, where it waits for what came before.
void Switch::arrive(const std::shared_ptr<Packet>& packet, Clock::time_point now) {
  std::uniform_real_distribution<double> part;
  if (config_.loss > 0 && part(random_) < config_.loss) {
    ++report_.lost;
    return;
  }
  Port& port = ports_[packet->to];
  const auto begin = std::max(now, port.receives_until);
  if (Seconds(begin - now).count() * port.is.rate > static_cast<double>(config_.queue_bytes)) {
    ++report_.overflowed;
    return;
  }
  port.receives_until = begin + duration(packet->wire_bytes / port.is.rate);
  // Its last segment can leave when it has come from a host that may be slower.
  const auto last = packet->arrived + duration(packet->first_bytes / port.is.rate);
  packet->handed_over = std::max(port.receives_until, last);
  push(packet->handed_over, Step::hand_over, packet);
}

void Switch::hand_over(const Packet& packet) {
  const double late = Seconds(Clock::now() - packet.handed_over).count();
  const int tun = ports_[packet.to].is.tun.get();
  // A host that is gone, or has no memory, loses packets.
  (void)!::write(tun, packet.content.data(), packet.content.size());
  ++report_.packets;
  report_.bytes += static_cast<uint64_t>(packet.wire_bytes);
  report_.late_most = std::max(report_.late_most, late);
  const auto place = static_cast<size_t>(kPerOctave * std::log2(std::max(1.0, late * 1e9)));
  if (late_.size() <= place) late_.resize(place + 1);
  ++late_[place];
}

void Switch::push(Clock::time_point at, Step step, std::shared_ptr<Packet> packet) {
  events_.push({at, num_events_++, step, std::move(packet)});
}

// Until something is due or comes from a host whose cable is free.
void Switch::wait(int stop, bool& stopped) {
  auto until = events_.empty() ? Clock::time_point::max() : events_.top().at;
  std::vector<pollfd> fds{{stop, POLLIN, 0}};
  const auto now = Clock::now();
  for (const Port& port : ports_) {
    if (port.sends_until <= now) {
      fds.push_back({port.is.tun.get(), POLLIN, 0});
    } else {
      until = std::min(until, port.sends_until);
    }
  }
  const auto left = std::max(Clock::duration::zero(), until - now);
  const auto seconds = std::chrono::floor<std::chrono::seconds>(left);
  const timespec timeout{seconds.count(), (left - seconds).count()};
  const int ready = ::ppoll(fds.data(), fds.size(),
                            until == Clock::time_point::max() ? nullptr : &timeout, nullptr);
  if (ready < 0 && errno != EINTR) throw SystemError(errno, "poll the hosts' devices");
  stopped = ready > 0 && fds.front().revents != 0;
}

SwitchReport Switch::report() const {
  SwitchReport report = report_;
  const auto quantile = [&](double part) {
    uint64_t count = 0;
    for (size_t i = 0; i < late_.size(); ++i) {
      count += late_[i];
      if (static_cast<double>(count) >= part * static_cast<double>(report_.packets)) {
        return std::exp2(static_cast<double>(i + 1) / kPerOctave) * 1e-9;
      }
    }
    return 0.0;
  };
  report.late_median = std::min(quantile(0.5), report.late_most);
  report.late_99 = std::min(quantile(0.99), report.late_most);
  return report;
}

}  // namespace hier
