// mbarrier: barriers in shared memory that count arrivals, and bytes of copies, phase by phase.
//
// The 64 bits in shared memory stay opaque; the state is kept beside them, by address.
#pragma once
#include <utility>

#include "memory.hpp"

namespace ptxsim {

[[noreturn]] inline void fault_mbarrier(Warp& warp, int lane, uint64_t address, const std::string& message) {
  raise_fault(warp, lane, FaultKind::InvalidMbarrier, message, address, 8, false, -2);
}

// Calls f(lane, address, mbarrier or nullptr) for the lanes of the instruction, whose operand 0 is the address.
template <class F>
void for_each_mbarrier(Warp& warp, const Instruction& i, uint32_t mask, int operand, Access access, F f) {
  auto& mbarriers = warp.block->async.mbarriers;
  warp.poll.changed = true;  // loops with an mbarrier in them are not those of polling.hpp
  for_each_lane(mask, [&](int lane) {
    uint64_t address = lane_address(warp, i, operand, lane, i.offset);
    checked_pointer(warp, i, lane, address, 8, access, Space(i.space));
    resolve_space(Space(i.space), address);
    auto found = mbarriers.find(uint32_t(address));
    f(lane, uint32_t(address), found == mbarriers.end() ? nullptr : &found->second);
  });
}

inline Mbarrier& existing(Warp& warp, int lane, uint32_t address, Mbarrier* mbarrier) {
  if (!mbarrier) fault_mbarrier(warp, lane, address, "no mbarrier was initialised here, or it was invalidated");
  return *mbarrier;
}

inline void complete_phase_if_due(Block& block, Mbarrier& mbarrier) {
  if (mbarrier.pending || mbarrier.bytes) return;
  mbarrier.phase++;
  mbarrier.pending = mbarrier.expected;
  join_clock(mbarrier.completed_clock, mbarrier.clock);
  for (Warp& warp : block.warps) warp.failed_polls = 0;
}

inline void arrive(Warp& warp, int lane, uint32_t address, Mbarrier& mbarrier, uint32_t count) {
  if (count > mbarrier.pending) fault_mbarrier(warp, lane, address, "more arrivals at an mbarrier than it expects");
  mbarrier.pending -= count;
  complete_phase_if_due(*warp.block, mbarrier);
}

// Arrivals of asynchronous work reach their mbarriers.
inline void deliver_arrivals(Warp& warp) {
  AsyncState& async = warp.block->async;
  for (const auto& [address, clock] : std::exchange(async.arrivals, {})) {
    auto found = async.mbarriers.find(address);
    Mbarrier& mbarrier = existing(warp, 0, address, found == async.mbarriers.end() ? nullptr : &found->second);
    join_clock(mbarrier.clock, clock);
    arrive(warp, 0, address, mbarrier, 1);
  }
}

// Operands: 0 address, 1 count.
inline void execute_mbarrier_init(Warp& warp, const Instruction& i, uint32_t mask) {
  for_each_mbarrier(warp, i, mask, 0, Access::Write, [&](int lane, uint32_t address, Mbarrier* mbarrier) {
    if (mbarrier) fault_mbarrier(warp, lane, address, "mbarrier initialised twice");
    const uint32_t count = warp.reg<uint32_t>(i, 1)[lane];
    if (count == 0 || count >= 1u << 20) fault_mbarrier(warp, lane, address, "mbarrier count outside 1 to 2^20 - 1");
    warp.block->async.mbarriers[address] = {count, count};
  });
}

inline void execute_mbarrier_invalidate(Warp& warp, const Instruction& i, uint32_t mask) {
  for_each_mbarrier(warp, i, mask, 0, Access::Write, [&](int lane, uint32_t address, Mbarrier* mbarrier) {
    existing(warp, lane, address, mbarrier);
    for (const auto& arrival : warp.block->async.arrivals)
      if (arrival.first == address) fault_mbarrier(warp, lane, address, "mbarrier invalidated before an arrival that is on its way");
    warp.block->async.mbarriers.erase(address);
  });
}

// Operands: 0 address, 1 bytes.
inline void execute_mbarrier_expect(Warp& warp, const Instruction& i, uint32_t mask) {
  for_each_mbarrier(warp, i, mask, 0, Access::Atomic, [&](int lane, uint32_t address, Mbarrier* mbarrier) {
    existing(warp, lane, address, mbarrier).bytes += warp.reg<uint32_t>(i, 1)[lane];
  });
}

// mbarrier.complete_tx. Operands: 0 address, 1 bytes.
inline void execute_mbarrier_complete(Warp& warp, const Instruction& i, uint32_t mask) {
  for_each_mbarrier(warp, i, mask, 0, Access::Atomic, [&](int lane, uint32_t address, Mbarrier* mbarrier) {
    existing(warp, lane, address, mbarrier).bytes -= warp.reg<uint32_t>(i, 1)[lane];
    complete_phase_if_due(*warp.block, *mbarrier);
  });
}

// Operands: 0 state that identifies the phase (or none), 1 address, 2 count or, kind 1, bytes to expect before one arrival.
inline void execute_mbarrier_arrive(Warp& warp, const Instruction& i, uint32_t mask) {
  for_each_mbarrier(warp, i, mask, 1, Access::Atomic, [&](int lane, uint32_t address, Mbarrier* mbarrier) {
    existing(warp, lane, address, mbarrier);
    if (i.operand[0] != NO_OPERAND) warp.reg<uint64_t>(i, 0)[lane] = mbarrier->phase;
    join_clock(mbarrier->clock, warp.clock);
    const uint32_t amount = warp.reg<uint32_t>(i, 2)[lane];
    if (i.kind) mbarrier->bytes += amount;
    arrive(warp, lane, address, *mbarrier, i.kind ? 1 : amount);
  });
  warp.clock[warp.index]++;
}

// mbarrier.test_wait, try_wait. Operands: 0 predicate, 1 address, 2 state or, kind 1, parity of the phase.
// Waiting threads ask again and again; run_warp lets another warp on after a failure. Where schedules are random, asynchronous
// work may need more time.
inline void execute_mbarrier_test(Warp& warp, const Instruction& i, uint32_t mask) {
  Launch& launch = *warp.block->launch;
  if (!launch.options.shuffle || launch.random() % 2) deliver_arrivals(warp);
  uint32_t complete = 0;
  for_each_mbarrier(warp, i, mask, 1, Access::Atomic, [&](int lane, uint32_t address, Mbarrier* mbarrier) {
    existing(warp, lane, address, mbarrier);
    const bool done = i.kind ? (mbarrier->phase & 1) != (warp.reg<uint32_t>(i, 2)[lane] & 1)
                             : mbarrier->phase != warp.reg<uint64_t>(i, 2)[lane];
    if (!done) return;
    complete |= 1u << lane;
    join_clock(warp.clock, mbarrier->completed_clock);
  });
  uint32_t& predicate = warp.predicates[i.operand[0]];
  predicate = (predicate & ~mask) | complete;
  warp.failed_polls = complete ? 0 : warp.failed_polls + 1;
  constexpr uint32_t HOPELESS = 1000;  // failures of every warp since a phase was last completed
  for (const Warp& other : warp.block->warps)
    if (other.state == WarpState::Ready && other.failed_polls < HOPELESS) return;
  raise_fault(warp, __builtin_ctz(mask), FaultKind::Deadlock, "deadlock: every warp waits, and no arrival at an mbarrier can come");
}

inline void register_mbarrier() {
  auto& table = handler_table();
  table["mbarrier.init"] = execute_mbarrier_init;
  table["mbarrier.inval"] = execute_mbarrier_invalidate;
  table["mbarrier.expect_tx"] = execute_mbarrier_expect;
  table["mbarrier.complete_tx"] = execute_mbarrier_complete;
  table["mbarrier.arrive"] = execute_mbarrier_arrive;
  table["mbarrier.test_wait"] = execute_mbarrier_test;
}

}  // namespace ptxsim
