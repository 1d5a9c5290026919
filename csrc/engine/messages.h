// Point-to-point messages with tags, as MPI has them, over one channel to each peer.
//
// A small message is sent at once (eager); where no receive has been posted yet it is set aside.
// What a peer may have set aside is limited: a larger message, or one beyond the limit, is
// announced, and its bytes follow once the receiver has granted it (rendezvous). The receiver knows
// best what it has set aside: a small message that was announced and fits is fetched at once.
// Messages of a pair of ranks match in the order in which they were posted. Nothing here blocks;
// one thread at a time drives it.
#pragma once

#include <poll.h>
#include <algorithm>

#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "engine/checksum.h"
#include "reduce/reduce.h"
#include "transport/channel.h"

namespace hier {

constexpr int kAnySource = -1;
constexpr int kAnyTag = -1;

// One send or receive under way.
struct Transfer {
  bool send = false;
  int peer = 0;  // of a receive: kAnySource too, and then the sender once it has been matched
  int tag = 0;   // likewise with kAnyTag
  std::byte* data = nullptr;  // a send only reads it
  size_t bytes = 0;
  DType dtype = DType::u8;  // checked to be the same at both ends
  Clock::time_point begun, deadline;
  // Called once, when the buffer is the caller's again, by the driving thread.
  std::function<void(std::exception_ptr)> ended;
  std::list<std::shared_ptr<Transfer>>::iterator place;  // among the unfinished, set by post()
};
std::string amount(DType dtype, size_t bytes);   // "f32[10]"
std::string describe(const Transfer& transfer);  // "recv(f32[10]) from rank 2, tag 0"

// What opens each message on the wire.
struct MessageHeader {
  // last: of a rank that is about to leave; it sends nothing more but data that it has announced.
  enum class Type : uint8_t { eager = 1, announce, grant, data, last };
  static constexpr uint32_t kMagic = 0x4d524148;  // "HARM"

  uint32_t magic = kMagic;
  Type type{};
  DType dtype{};
  uint16_t generation = 0;
  uint32_t group_id = 0;
  int32_t tag = 0;
  uint64_t bytes = 0;     // of the message; of a grant: 0
  uint64_t id = 0;        // of an announced message, chosen by its sender
  uint64_t consumed = 0;  // of the receiver's eager messages, the writer has taken so many bytes
};
static_assert(sizeof(MessageHeader) == 40);

class Messages {
 public:
  static constexpr size_t kEagerBytes = 128 << 10;  // larger messages are announced
  static constexpr size_t kEagerWindow = 1 << 20;   // most that one peer may have set aside here

  // channels[r] leads to rank r; null where there is none. They are not owned.
  Messages(int rank, uint32_t group_id, uint16_t generation, std::vector<Channel*> channels);

  void post(const std::deque<std::shared_ptr<Transfer>>& transfers);
  // Moves what can move; true if anything did. Throws BrokenStream, IntegrityError or
  // MismatchError. To be called, if less often, while nothing is posted, too: what peers send is
  // set aside, so that they can go on.
  bool progress();
  // Looks at every ring, and at sockets too if poll says that something has come.
  bool listen(bool sockets);
  bool idle() const { return unfinished_.empty(); }
  const std::list<std::shared_ptr<Transfer>>& unfinished() const { return unfinished_; }
  // This rank is about to leave: it sends no more messages, and tells every peer, behind all that
  // it has sent; those that are not connected, once they are. True the first time.
  bool say_last();
  bool flushed() const;                        // nothing is left that a peer has still to be told
  bool any_last() const { return any_last_; }  // whether a peer has said so
  // A receive for which no rank can send any more, if there is one; and to forget it.
  std::shared_ptr<Transfer> hopeless_receive() const;
  void drop(const std::shared_ptr<Transfer>& receive) noexcept;
  // All that has not ended, which is forgotten: after an error.
  std::list<std::shared_ptr<Transfer>> take_unfinished();

  void blocked_on(std::vector<pollfd>& fds) const;  // what to poll when progress() is false
  // When progress() is false: an unfinished transfer that needs this rank; null if there is none.
  // (A receive from any rank needs none in particular.)
  const Transfer* waits_for(int rank) const;
  bool ended(int rank) const { return peers_[rank].ended; }  // nothing more comes from there
  bool left(int rank) const { return peers_[rank].last; }    // which it has said before
  bool any_ended() const { return any_ended_; }
  // A peer that was connected on demand has left in order. If it never said anything, it has
  // nothing more to say either: what waits for a message of it is hopeless. False if that is not
  // so, or if more waits for the peer.
  bool excuse(int rank);
  // Of a receive that waits: what has come from its peer instead, in words; "" if nothing.
  std::string others_from(const Transfer& transfer) const;

 private:
  struct Outgoing {
    Opening<MessageHeader> opening;
    std::shared_ptr<Transfer> transfer;  // of eager and data messages: whose payload follows
    size_t sent = 0;                     // bytes of opening, payload and trailer
    Checksum sum = {};                   // of the payload
  };
  // A message that came before its receive.
  struct Unexpected {
    int source;
    MessageHeader header;
    std::vector<std::byte> payload;  // eager, or fetched
    bool whole = false;
    bool fetched = false;
    std::shared_ptr<Transfer> claimed;  // by a receive that was posted while it arrived
  };
  struct Peer {
    Channel* channel = nullptr;
    bool silent = false;     // connected on demand, and nothing has come yet, nor was lost
    bool ended = false;      // the peer has closed its stream
    bool last = false;       // the peer has said that it sends no more messages
    bool told_last = false;  // that this rank does not
    std::deque<Outgoing> outgoing;
    std::map<uint64_t, std::shared_ptr<Transfer>> announced;  // own sends that wait for a grant
    std::map<uint64_t, std::shared_ptr<Transfer>> granted;    // receives that wait for their data
    std::map<uint64_t, Unexpected*> fetched;                  // likewise, with nobody to receive
    uint64_t eager_sent = 0, eager_taken = 0;  // bytes to the peer, and those it has taken
    uint64_t consumed = 0;                     // bytes of the peer's eager messages taken here
    uint64_t set_aside = 0;                    // bytes of the peer's unexpected messages
    size_t without_room = 0;                   // small ones that were announced, and not fetched
    // The message that is coming in:
    Opening<MessageHeader> opening;
    size_t header_done = 0;              // bytes of the opening
    size_t payload_done = 0;             // and of the trailer
    Checksum sum = {};                   // of the payload
    Trailer trailer = {};                // as it is received
    std::shared_ptr<Transfer> receiver;  // where its payload goes, or else:
    Unexpected* unexpected = nullptr;
  };

  // What a message counts for in the window: empty ones take memory too.
  static uint64_t weight(uint64_t bytes) { return std::max<uint64_t>(bytes, 64); }
  MessageHeader header_of(MessageHeader::Type type, const Peer& peer) const;
  void post_send(const std::shared_ptr<Transfer>& transfer);
  void post_receive(const std::shared_ptr<Transfer>& transfer);
  bool advance(int rank, Peer& peer);
  bool send_some(Peer& peer);
  bool receive_some(int rank, Peer& peer);
  bool receive_header(int rank, Peer& peer);
  void push(Peer& peer, const MessageHeader& header, std::shared_ptr<Transfer> transfer = nullptr);
  void tell_last(Peer& peer);
  void opened(int rank, Peer& peer);
  void arrived(int rank, Peer& peer);
  void set_aside(Peer& peer, Unexpected& unexpected);
  void use_room(int source);
  void take_unexpected(std::list<Unexpected>::iterator unexpected,
                       const std::shared_ptr<Transfer>& transfer);
  void grant(Peer& peer, uint64_t id);
  void match(int source, const MessageHeader& header, Transfer& receive) const;
  void finish(const std::shared_ptr<Transfer>& transfer);
  bool wanted(int rank, const Peer& peer) const;
  [[noreturn]] void broken(int rank, const ChannelBroken& why) const;
  bool hopeless(const Transfer& receive) const;
  [[noreturn]] void corrupt(int rank, const char* what) const;
  [[noreturn]] void damaged(int rank, const Peer& peer) const;

  const int rank_;
  const uint32_t group_id_;
  const uint16_t generation_;
  std::vector<Peer> peers_;
  std::list<std::shared_ptr<Transfer>> unfinished_;  // in the order of their posting
  std::list<std::shared_ptr<Transfer>> posted_;      // receives that nothing has matched yet
  std::list<Unexpected> unexpected_;                 // in the order of their arrival
  bool any_ended_ = false;
  bool said_last_ = false, any_last_ = false;
  uint64_t next_id_ = 1;
  unsigned turns_ = 0;
};

}  // namespace hier
