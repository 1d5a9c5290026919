// The event loop of the simulation.
#include "analysis/simulate.h"

#include <algorithm>
#include <functional>
#include <map>
#include <queue>
#include <stdexcept>
#include <string>

namespace hier {
namespace {

size_t at(int index) { return static_cast<size_t>(index); }

// Serves first come, first served.
struct Port {
  double free_at = 0, busy = 0;
  double occupy(double now, double duration) {  // returns when the service starts
    const double start = std::max(now, free_at);
    free_at = start + duration;
    busy += duration;
    return start;
  }
};

// Everything that travels from src to dst, in wire order: message k is the send step sends[k] of
// src and the receive step receives[k] of dst.
struct Wire {
  int src, dst;
  std::span<const uint32_t> sends, receives;
  size_t num_sent = 0, num_arrived = 0, num_received = 0;  // sent and received: started
  std::vector<double> first_byte = {};                     // of each message, at dst
};

enum class What : uint8_t { send_ended, head_arrived, message_arrived, receive_ended };

struct Event {
  double time;
  uint64_t sequence;  // events of one time happen in the order in which they were caused
  What what;
  uint32_t wire;
  size_t message;
  bool operator>(const Event& other) const {
    return time != other.time ? time > other.time : sequence > other.sequence;
  }
};

class Simulator {
 public:
  Simulator(std::span<const Program> programs, size_t element_size, const Network& network)
      : programs_(programs), element_size_(element_size), network_(network) {
    if (network.node_of.size() != programs.size())
      throw std::invalid_argument("simulate: node_of must name a node for each rank");
    int num_nodes = 0;
    for (int node : network.node_of) {
      if (node < 0 || at(node) >= programs.size())
        throw std::invalid_argument("simulate: nodes must be numbered from 0");
      num_nodes = std::max(num_nodes, node + 1);
    }
    local_out_.resize(programs.size());
    local_in_.resize(programs.size());
    nic_out_.resize(at(num_nodes));
    nic_in_.resize(at(num_nodes));
    cpu_.resize(programs.size());
    connect();
  }

  Simulation run() && {
    for (size_t r = 0; r < programs_.size(); ++r)  // each rank's in the order of its program
      for (const Queue& queue : programs_[r].queues)
        if (queue.send) start_sends(wire_between(static_cast<int>(r), queue.peer));
    while (!events_.empty()) {
      const Event event = events_.top();
      events_.pop();
      now_ = event.time;
      handle(event);
    }
    return finish();
  }

 private:
  uint32_t wire_between(int src, int dst) {
    const auto [found, is_new] =
        wire_of_pair_.try_emplace({src, dst}, static_cast<uint32_t>(wires_.size()));
    if (is_new) wires_.push_back({src, dst, {}, {}});
    return found->second;
  }

  // Joins the queues of both ends and checks that they belong together.
  void connect() {
    for (size_t r = 0; r < programs_.size(); ++r) {
      const Program& program = programs_[r];
      std::vector<uint32_t>& waits = waits_.emplace_back();
      for (size_t i = 0; i < program.num_steps(); ++i) waits.push_back(program.steps[i].waits);
      wire_of_step_.emplace_back(program.num_steps());
      const int rank = static_cast<int>(r);
      for (const Queue& queue : program.queues) {
        const std::span ids = std::span(program.order).subspan(queue.first, queue.count);
        const uint32_t index =
            queue.send ? wire_between(rank, queue.peer) : wire_between(queue.peer, rank);
        (queue.send ? wires_[index].sends : wires_[index].receives) = ids;
        for (uint32_t id : ids) wire_of_step_[r][id] = index;
      }
    }
    for (const Wire& wire : wires_) {
      bool match = wire.sends.size() == wire.receives.size();
      for (size_t k = 0; match && k < wire.sends.size(); ++k)
        match = step(wire.src, wire.sends[k]).count == step(wire.dst, wire.receives[k]).count;
      if (!match)
        throw std::logic_error("simulate: the programs of ranks " + std::to_string(wire.src) +
                               " and " + std::to_string(wire.dst) + " do not match");
    }
  }

  const Step& step(int rank, uint32_t id) const { return programs_[at(rank)].steps[id]; }
  double bytes(const Wire& wire, size_t message) const {
    return static_cast<double>(step(wire.src, wire.sends[message]).count * element_size_);
  }
  bool is_local(const Wire& wire) const {
    return network_.node_of[at(wire.src)] == network_.node_of[at(wire.dst)];
  }
  const Link& link(const Wire& wire) const {
    return is_local(wire) ? network_.local : network_.inter;
  }
  Port& out_port(const Wire& wire) {
    return is_local(wire) ? local_out_[at(wire.src)] : nic_out_[at(network_.node_of[at(wire.src)])];
  }
  Port& in_port(const Wire& wire) {
    return is_local(wire) ? local_in_[at(wire.dst)] : nic_in_[at(network_.node_of[at(wire.dst)])];
  }

  void post(double time, What what, uint32_t wire, size_t message) {
    events_.push({time, num_events_++, what, wire, message});
  }
  void record(int rank, uint32_t id, double start, double end) {
    const Step& s = step(rank, id);
    result_.timeline.push_back(
        {rank, id, s.kind, s.peer, s.round, s.chunk, s.count * element_size_, start, end});
  }

  void start_sends(uint32_t index) {
    Wire& wire = wires_[index];
    while (wire.num_sent < wire.sends.size() &&
           waits_[at(wire.src)][wire.sends[wire.num_sent]] == 0) {
      const size_t message = wire.num_sent++;
      const Link& on = link(wire);
      const double duration = on.overhead + bytes(wire, message) * on.beta;
      const double start = out_port(wire).occupy(now_, duration);
      record(wire.src, wire.sends[message], start, start + duration);
      post(start + duration, What::send_ended, index, message);
      post(start + on.overhead + on.alpha, What::head_arrived, index, message);
    }
  }

  void start_receives(uint32_t index) {
    Wire& wire = wires_[index];
    while (wire.num_received < wire.num_arrived &&
           waits_[at(wire.dst)][wire.receives[wire.num_received]] == 0) {
      const size_t message = wire.num_received++;
      const uint32_t id = wire.receives[message];
      double end = now_;
      if (step(wire.dst, id).kind == StepKind::recv_reduce) {
        const double duration = bytes(wire, message) * network_.gamma;
        end = cpu_[at(wire.dst)].occupy(now_, duration) + duration;
      }
      record(wire.dst, id, wire.first_byte[message], end);
      post(end, What::receive_ended, index, message);
    }
  }

  void handle(const Event& event) {
    Wire& wire = wires_[event.wire];
    switch (event.what) {
      case What::send_ended:
        return step_ended(wire.src, wire.sends[event.message]);
      case What::receive_ended:
        return step_ended(wire.dst, wire.receives[event.message]);
      case What::head_arrived: {
        const double duration = bytes(wire, event.message) * link(wire).beta;
        const double start = in_port(wire).occupy(now_, duration);
        wire.first_byte.push_back(start);
        return post(start + duration, What::message_arrived, event.wire, event.message);
      }
      case What::message_arrived:
        ++wire.num_arrived;
        return start_receives(event.wire);
    }
  }

  void step_ended(int rank, uint32_t id) {
    ++num_ended_;
    const Program& program = programs_[at(rank)];
    for (uint32_t n = program.steps[id].first_next; n < program.steps[id + 1].first_next; ++n) {
      const uint32_t successor = program.next[n];
      if (--waits_[at(rank)][successor] > 0) continue;
      const uint32_t wire = wire_of_step_[at(rank)][successor];
      step(rank, successor).kind == StepKind::send ? start_sends(wire) : start_receives(wire);
    }
  }

  Simulation finish() {
    size_t num_steps = 0;
    for (const Program& program : programs_) num_steps += program.num_steps();
    if (num_ended_ != num_steps) throw std::logic_error("simulate: the programs wait for ever");
    const auto busy = [](const std::vector<Port>& ports) {
      std::vector<double> seconds;
      for (const Port& port : ports) seconds.push_back(port.busy);
      return seconds;
    };
    result_.seconds = now_;
    result_.rank_reducing = busy(cpu_);
    result_.local_out_busy = busy(local_out_);
    result_.local_in_busy = busy(local_in_);
    result_.nic_out_busy = busy(nic_out_);
    result_.nic_in_busy = busy(nic_in_);
    std::stable_sort(result_.timeline.begin(), result_.timeline.end(),
                     [](const TimelineEntry& a, const TimelineEntry& b) { return a.end < b.end; });
    return std::move(result_);
  }

  std::span<const Program> programs_;
  size_t element_size_;
  const Network& network_;
  std::vector<Wire> wires_;
  std::map<std::pair<int, int>, uint32_t> wire_of_pair_;
  std::vector<std::vector<uint32_t>> waits_, wire_of_step_;  // by rank and step
  std::vector<Port> local_out_, local_in_, nic_out_, nic_in_, cpu_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  uint64_t num_events_ = 0;
  size_t num_ended_ = 0;
  double now_ = 0;
  Simulation result_;
};

}  // namespace

Simulation simulate(std::span<const Program> programs, size_t element_size,
                    const Network& network) {
  return Simulator(programs, element_size, network).run();
}

Simulation simulate(const Schedule& schedule, std::span<const size_t> bounds, size_t element_size,
                    size_t segment, const Network& network) {
  std::vector<Program> programs;
  for (int rank = 0; rank < schedule.world_size; ++rank)
    programs.push_back(lower(schedule, rank, bounds, segment, network.node_of));
  return simulate(programs, element_size, network);
}

}  // namespace hier
