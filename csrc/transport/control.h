// Control links: channels beside the data, for what must be said out of band: that a run failed and
// why, where a rank is, that it leaves. They also tell when a peer is gone.
//
// In a large group a rank has links to some of the others only. The links of all ranks form a graph
// that stays connected whoever dies. What all must know is passed on: an abort by whoever hears of
// it (Member::fail), and who is gone by what follows here.
#pragma once

#include <poll.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "transport/channel.h"

namespace hier {

// Frames have one fixed size, so that nothing that a peer sends decides how much is read.
struct ControlFrame {
  enum class Type : uint8_t { abort = 1, status, goodbye, gone };
  static constexpr uint32_t kMagic = 0x43524148;  // "HARC"

  uint32_t magic = kMagic;
  Type type{};
  ErrorKind kind{};         // abort: the type of the error
  uint16_t text_bytes = 0;  // abort: its message
  int32_t culprit = -1;     // abort: the rank of a PeerError; gone: the first it tells of;
                            // goodbye: the sender, if its group has failed
  uint32_t checksum = 0;    // CRC32C of the frame, this field as 0
  std::array<std::byte, 64> header{};  // status: the run that the sender waits in
  // abort: words. status: RankBits, of those that are in that run too, or further. gone: a set
  // of them for each Presence but the first.
  std::array<char, 944> text{};

  void set_text(std::string_view message);  // cut where it is too long, after a whole character
  std::string message() const;
  uint32_t sum() const;  // what `checksum` must be

  bool bit(size_t number) const { return text[number / 8] >> number % 8 & 1; }
  void set_bit(size_t number) { text[number / 8] |= static_cast<char>(1 << number % 8); }
  static constexpr size_t kBits = 8 * 944;
};
static_assert(sizeof(ControlFrame) == 1024);

class ControlLinks {
 public:
  // Lost: the host does not answer; nothing can come from there any more.
  // Failed: it has left, since its group had failed.
  enum class Presence : uint8_t { present, left, failed, died, lost };

  // channels[r] leads to rank r; null for `rank` itself, and where there is no link. The kernel
  // keeps sockets alive: see set_keepalive() in allreduce/rendezvous/address.py.
  ControlLinks(int rank, std::vector<std::unique_ptr<Channel>> channels);

  // Best effort and without blocking, to all who are linked: a peer that does not read misses it.
  // From any thread; all else belongs to the thread that drives the group.
  void broadcast(ControlFrame frame) noexcept;
  // Whether some ranks hear of this one by way of others only.
  bool sparse() const { return sparse_; }
  // Passes on who is gone, where that is news.
  void tell_gone() noexcept;
  // Hands every complete frame that has arrived to `handle`, and notes who is gone.
  void receive(const std::function<void(int rank, const ControlFrame&)>& handle);
  Presence presence(int rank) const { return links_[rank].presence; }
  bool anybody_gone() const { return anybody_gone_; }
  bool any_open() const;  // whether anything can still come
  // Notes as lost whoever has left something unacknowledged for so long.
  void check_silence(double seconds);
  int lost() const { return lost_; }  // a rank whose host does not answer; -1 if there is none
  void poll_fds(std::vector<pollfd>& fds) const;
  void close();

 private:
  struct Link {
    std::unique_ptr<Channel> channel;
    Presence presence = Presence::present;
    bool writable = true;  // a partial write ends the sending direction: frames must stay whole
    size_t filled = 0;
    std::array<std::byte, sizeof(ControlFrame)> buffer;

    bool open() const { return channel && presence == Presence::present; }
  };
  void receive_from(int rank, Link& link,
                    const std::function<void(int rank, const ControlFrame&)>& handle);
  void note(int rank, Presence presence);
  void hear_gone(const ControlFrame& frame);
  const int rank_;
  const bool sparse_;
  std::mutex send_mutex_;  // guards sending and closing
  std::vector<Link> links_;
  bool anybody_gone_ = false;
  bool news_ = false;  // of somebody who is gone, which the others have not been told
  int lost_ = -1;
};

}  // namespace hier
