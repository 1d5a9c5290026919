// Lives by their seeds.
//   simulate FIRST COUNT          runs these; prints the first that goes wrong, made small
//   simulate FIRST COUNT SECONDS  stops after so many seconds
//   simulate SEED                 runs one, and tells what happens
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "life.h"

namespace hier::simulation {
namespace {

std::string outcome(const Scenario& scenario) { return Life(scenario).run(); }

template <class T>
bool shrink(Scenario& scenario, std::vector<T> Scenario::* list) {
  bool smaller = false;
  for (size_t i = (scenario.*list).size(); i-- > 0;) {
    Scenario less = scenario;
    (less.*list).erase((less.*list).begin() + static_cast<std::ptrdiff_t>(i));
    if (less.operations.empty() || outcome(less).empty()) continue;
    scenario = less;
    smaller = true;
  }
  return smaller;
}

void tell(const Scenario& scenario) {
  std::printf("seed %llu: nodes", static_cast<unsigned long long>(scenario.seed));
  for (const int node : scenario.node_of_rank) std::printf(" %d", node);
  std::printf(", %d lanes, rails %d%s%s, delays up to %.6f s, %zu bytes under way\n",
              scenario.lanes, scenario.rails, scenario.hierarchical ? "" : ", flat",
              scenario.checksum ? "" : ", unchecked", Seconds(scenario.most_delay).count(),
              scenario.capacity);
  for (const Operation& op : scenario.operations) std::printf("  %s\n", describe(op).c_str());
  for (const Fault& fault : scenario.faults) std::printf("  %s\n", describe(fault).c_str());
}

int tell_wrong(Scenario scenario, const std::string& wrong) {
  std::printf("WRONG %s\n", wrong.c_str());
  while (shrink(scenario, &Scenario::operations) || shrink(scenario, &Scenario::faults)) continue;
  tell(scenario);
  const std::string small = outcome(scenario);
  std::printf("made small: %s\n", small.c_str());
  return 1;
}

int replay(uint64_t seed) {
  const Scenario scenario = draw(seed);
  tell(scenario);
  Life life(scenario, /*trace=*/true);
  const std::string wrong = life.run();
  if (!wrong.empty()) return tell_wrong(scenario, wrong);
  std::printf("well, after %zu steps and %.6f s of virtual time\n", life.steps(),
              Seconds(life.lasted()).count());
  return 0;
}

int run(uint64_t first, uint64_t count, double seconds) {
  const auto begin = Clock::now();
  uint64_t lives = 0, steps = 0;
  for (; lives < count; ++lives) {
    if (lives % 64 == 0 && Seconds(Clock::now() - begin).count() >= seconds) break;
    const Scenario scenario = draw(first + lives);
    Life life(scenario);
    const std::string wrong = life.run();
    steps += life.steps();
    if (!wrong.empty()) {
      std::printf("seed %llu\n", static_cast<unsigned long long>(first + lives));
      return tell_wrong(scenario, wrong);
    }
  }
  const double took = Seconds(Clock::now() - begin).count();
  std::printf("%llu lives from seed %llu, %.0f a second, %.0f steps each: all well\n",
              static_cast<unsigned long long>(lives), static_cast<unsigned long long>(first),
              static_cast<double>(lives) / took,
              static_cast<double>(steps) / static_cast<double>(lives ? lives : 1));
  return 0;
}

}  // namespace
}  // namespace hier::simulation

int main(int argc, char** argv) {
  using namespace hier::simulation;
  if (argc < 2) return 2;
  const uint64_t first = std::strtoull(argv[1], nullptr, 10);
  if (argc == 2) return replay(first);
  return run(first, std::strtoull(argv[2], nullptr, 10), argc > 3 ? std::atof(argv[3]) : 1e9);
}
