// Race mode: which accesses happened before which, by vector clocks over the warps of every block.
//
// A warp knows how far each warp of its own block had come (`clock`) and how far those of other blocks
// had (`known`). Barriers join the knowledge of the warps that meet. Across blocks, and within one
// through flags, knowledge travels as in PTX's memory model: a release, or a fence followed by a strong
// write, publishes it on a variable; an acquire, or a strong read followed by a fence, takes it over.
// Fences hold across a barrier of the block too: what another warp has fenced may be published by a
// write of this one, as on hardware.
#pragma once
#include <algorithm>
#include <functional>

#include "machine.hpp"

namespace ptxsim {

inline void join_clock(std::vector<uint32_t>& into, const std::vector<uint32_t>& other) {
  if (into.size() < other.size()) into.resize(other.size());
  for (size_t k = 0; k < other.size(); k++) into[k] = std::max(into[k], other[k]);
}

// Whether everything in `part` is also in `whole`.
inline bool includes(const History& whole, const History& part) {
  return std::all_of(part.begin(), part.end(), [&](const auto& entry) {
    auto mine = whole.find(entry.first);
    if (mine == whole.end() || mine->second.size() < entry.second.size()) return false;
    return std::equal(entry.second.begin(), entry.second.end(), mine->second.begin(), std::less_equal<>());
  });
}

inline void join(Knowledge& into, const Knowledge& other) {
  if (!other || into == other) return;
  if (!into || includes(*other, *into)) {
    into = other;
  } else if (!includes(*into, *other)) {
    auto joined = std::make_shared<History>(*into);
    for (const auto& [block, clock] : *other) join_clock((*joined)[block], clock);
    into = std::move(joined);
  }
}

// Takes over what was published.
inline void acquire(Warp& warp, const Knowledge& published) {
  if (!published) return;
  join(warp.known, published);
  auto own = published->find(warp.block->linear);
  if (own != published->end()) join_clock(warp.clock, own->second);
}

// Everything that happened before this moment of the warp, which then begins a new one.
inline Knowledge publishable(Warp& warp) {
  auto history = warp.known ? std::make_shared<History>(*warp.known) : std::make_shared<History>();
  join_clock((*history)[warp.block->linear], warp.clock);
  warp.clock[warp.index]++;
  return history;
}

inline void fence(Warp& warp, Scope scope) {
  for (int s = IN_BLOCK; s <= scope; s++) {
    acquire(warp, warp.observed[s]);
    warp.observed[s].reset();
  }
  const Knowledge released = publishable(warp);
  for (int s = IN_BLOCK; s <= scope; s++) warp.released[s] = released;
}

// One lane's strong read, write or (reads and writes) atomic operation of a synchronisation variable;
// `released` is what the operation itself releases.
inline void synchronize_through(Warp& warp, const Instruction& i, const uint8_t* variable, bool reads, bool writes,
                                const Knowledge& released) {
  Block& block = *warp.block;
  const bool shared = variable >= block.shared.data() && variable < block.shared.data() + block.shared.size();
  const Scope widest = (i.flags & BLOCK_SCOPE) || shared ? IN_BLOCK : ON_DEVICE;
  for (int s = IN_BLOCK; s <= widest; s++) {
    ReleasePoints& points = s == IN_BLOCK ? block.release_points : block.launch->release_points;
    if (!writes && !points.count(uintptr_t(variable))) continue;
    Knowledge& point = points[uintptr_t(variable)];
    if (reads && (i.flags & ACQUIRES)) acquire(warp, point);
    else if (reads) join(warp.observed[s], point);
    if (writes && !reads) point.reset();  // a plain write ends what earlier releases published here
    if (writes) {
      join(point, warp.released[s]);
      join(point, released);
    }
  }
}

// The ordering effects of a memory instruction whose lanes have accessed `data`.
inline void synchronize(Warp& warp, const Instruction& i, const uint8_t* const* data, uint32_t mask, bool reads, bool writes) {
  if (!warp.block->launch->options.detect_races) return;
  const Knowledge released = writes && (i.flags & RELEASES) ? publishable(warp) : nullptr;
  const uint8_t* latest = nullptr;
  for_each_lane(mask, [&](int lane) {
    if (data[lane] != latest) synchronize_through(warp, i, data[lane], reads, writes, released);
    latest = data[lane];
  });
}

inline AccessStamp stamp_of(const Warp& warp, Strength strength) {
  AccessStamp stamp;
  stamp.block_plus_one = warp.block->linear + 1;
  stamp.clock = warp.clock[warp.index];
  stamp.pc = warp.pc;
  stamp.warp = uint16_t(warp.index);
  stamp.strength = strength;
  return stamp;
}

inline bool ordered_before(const AccessStamp& earlier, const Warp& warp) {
  if (earlier.block_plus_one == 0) return true;
  const uint32_t block = earlier.block_plus_one - 1;
  if (block == warp.block->linear) return earlier.clock <= warp.clock[earlier.warp];
  if (!warp.known) return false;
  auto known = warp.known->find(block);
  return known != warp.known->end() && earlier.clock <= known->second[earlier.warp];
}

// Whether two accesses may meet unordered because both are strong towards each other.
inline bool both_strong(const AccessStamp& earlier, const Warp& warp, Strength strength) {
  const uint16_t weaker = std::min<uint16_t>(earlier.strength, strength);
  return weaker == STRONG || (weaker == STRONG_IN_BLOCK && earlier.block_plus_one == warp.block->linear + 1);
}

}  // namespace ptxsim
