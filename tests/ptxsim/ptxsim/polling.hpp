// Loops that wait for memory: found once per program, and left alone while they would only repeat.
//
// A pass of such a loop that changed no memory and hands the next pass the same registers it started
// from is not work: it is taken out of the counters. If what it read is still there, the next pass
// would do the same, so its warp is parked until somebody writes one of those words, or another warp of
// the block arrives at a barrier that the loop also comes by. A launch in which every
// resident block is parked, and no further one fits, cannot go on.
#pragma once
#include <algorithm>
#include <cstring>
#include <set>

#include "machine.hpp"

namespace ptxsim {

// ---------------------------------------------------------------- finding the loops

// Whether an instruction overwrites its operand `n` without reading it.
inline bool overwrites(const std::string& handler, const Instruction& i, int n) {
  if (i.guard >= 0) return false;
  if (handler == "ld") return n < i.count;
  for (const char* opcode : {"mov.b", "atom", "setp.", "add.", "sub.", "and.", "or.", "xor.", "not.", "shl.", "shr.", "cvt", "selp."})
    if (n == 0 && handler.rfind(opcode, 0) == 0) return true;
  return false;
}

// Innermost loops of adjacent instructions, from a branch's target to the branch, that read memory.
inline std::vector<PollingLoop> find_polling_loops(const std::vector<Instruction>& code,
                                                   const std::vector<std::string>& handlers, size_t predicates) {
  constexpr uint32_t LONGEST = 128;
  std::vector<PollingLoop> loops;
  uint32_t free = 0;  // past the latest branch back: a loop that begins before it holds another one
  for (uint32_t last = 0; last < code.size(); last++) {
    const uint32_t head = code[last].target;
    if (code[last].control != Control::Branch || head > last) continue;
    const bool innermost = head >= free;
    free = last + 1;
    if (!innermost || last - head >= LONGEST) continue;
    PollingLoop loop{head, last, NO_OPERAND, false, false, {}, {}};
    std::map<uint32_t, uint32_t> carried_registers;  // offset, bytes: read before they are surely written
    std::set<uint32_t> carried_predicates, written_registers, written_predicates;
    bool always = true;  // no branch yet: every pass comes by here
    for (uint32_t pc = head; pc <= last; pc++) {
      const Instruction& i = code[pc];
      const bool loads = handlers[pc] == "ld" && i.space != SPACE_PARAM && i.space != SPACE_CONST;
      const bool strong = handlers[pc] == "atom" || (loads && i.flags & STRONG_ACCESS);
      if ((loads && loop.load == NO_OPERAND) || (strong && !loop.strong)) loop.load = pc;
      loop.strong |= strong;
      loop.waits |= strong && (loads || i.flags & ACQUIRES);
      if (i.guard >= 0 && !written_predicates.count(i.guard)) carried_predicates.insert(i.guard);
      for (bool writing : {false, true})
        for (int n = 0; n < MAX_OPERANDS; n++) {
          if (i.operand[n] == NO_OPERAND || overwrites(handlers[pc], i, n) != writing) continue;
          auto& written = i.width[n] ? written_registers : written_predicates;
          if (writing && always) written.insert(i.operand[n]);
          else if (written.count(i.operand[n])) continue;
          else if (i.width[n]) {
            uint32_t& bytes = carried_registers[i.operand[n]];
            bytes = std::max(bytes, uint32_t(i.width[n]) * WARP_SIZE);
          } else if (i.operand[n] < predicates) {
            carried_predicates.insert(i.operand[n]);
          }
        }
      always &= i.control == Control::None || i.control == Control::Barrier;
    }
    loop.registers.assign(carried_registers.begin(), carried_registers.end());
    loop.predicates.assign(carried_predicates.begin(), carried_predicates.end());
    if (loop.load != NO_OPERAND) loops.push_back(std::move(loop));
  }
  return loops;
}

// ---------------------------------------------------------------- parking

inline void count_directly(Warp& warp) {
  warp.poll.loop = nullptr;
  warp.profile = warp.block->launch->profile.data();
  warp.first_profiled = 0;
}

template <class F>
inline void for_each_word(const uint8_t* data, uint32_t size, F f) {
  for (uintptr_t word = reinterpret_cast<uintptr_t>(data) / 4; word <= (reinterpret_cast<uintptr_t>(data) + size - 1) / 4; word++) f(word);
}

inline void wake(Warp& warp) {
  Block& block = *warp.block;
  auto& watchers = block.launch->watchers;
  for (const Reading& r : warp.poll.readings)
    for_each_word(r.data, r.size, [&](uintptr_t word) {
      auto entry = watchers.find(word);
      if (entry == watchers.end()) return;
      std::erase(entry->second, &warp);
      if (entry->second.empty()) watchers.erase(entry);
    });
  warp.state = WarpState::Ready;
  count_directly(warp);  // nothing to compare the next pass with
  if (!block.parked) return;
  block.parked = false;
  block.launch->runnable.push_back(&block);
}

inline void park(Warp& warp) {
  for (const Reading& r : warp.poll.readings)
    for_each_word(r.data, r.size, [&](uintptr_t word) {
      auto& waiting = warp.block->launch->watchers[word];
      if (waiting.empty() || waiting.back() != &warp) waiting.push_back(&warp);
    });
  warp.state = WarpState::Parked;
}

inline void note_read(Warp& warp, const uint8_t* data, uint32_t size) {
  if (!warp.poll.loop || warp.poll.changed) return;
  auto& readings = warp.poll.readings;
  if (!readings.empty() && readings.back().data == data && readings.back().size == size) return;
  readings.push_back({data, size, {}});
  std::memcpy(readings.back().value, data, size);
}

// Called before `size` bytes at `data` change; `value` is what comes, or nullptr if that is unknown.
inline void note_write(Warp& warp, const uint8_t* data, uint32_t size, const uint8_t* value) {
  if (value && !std::memcmp(data, value, size)) return;
  warp.poll.changed = true;
  auto& watchers = warp.block->launch->watchers;
  if (watchers.empty()) return;
  for_each_word(data, size, [&](uintptr_t word) {
    for (auto entry = watchers.find(word); entry != watchers.end(); entry = watchers.find(word)) wake(*entry->second.back());
  });
}

// ---------------------------------------------------------------- passes

// The warp has left the loop, or its pass did something: what it did counts.
inline void keep_pass(Warp& warp) {
  const PollingPass& pass = warp.poll;
  if (!pass.loop) return;
  InstructionProfile* total = &warp.block->launch->profile[pass.loop->head];
  for (const InstructionProfile& counts : pass.profile) *total++ += counts;
  count_directly(warp);
}

// Whether the pass just made changed nothing and leads to the same pass again.
inline bool pass_repeats(const Warp& warp, uint32_t mask) {
  const PollingPass& pass = warp.poll;
  if (pass.changed || pass.mask != mask || pass.other_fragments != warp.fragments) return false;
  const uint8_t* before = pass.registers.data();
  for (auto [offset, bytes] : pass.loop->registers) {
    if (std::memcmp(warp.registers + offset, before, bytes)) return false;
    before += bytes;
  }
  for (size_t k = 0; k < pass.predicates.size(); k++)
    if (warp.predicates[pass.loop->predicates[k]] != pass.predicates[k]) return false;
  return true;
}

inline void start_pass(Warp& warp, const PollingLoop& loop, uint32_t mask) {
  PollingPass& pass = warp.poll;
  pass.loop = &loop;
  pass.mask = mask;
  pass.changed = pass.met_barrier = false;
  pass.other_fragments = warp.fragments;
  pass.registers.clear();
  for (auto [offset, bytes] : loop.registers)
    pass.registers.insert(pass.registers.end(), warp.registers + offset, warp.registers + offset + bytes);
  pass.predicates.clear();
  for (uint32_t predicate : loop.predicates) pass.predicates.push_back(warp.predicates[predicate]);
  pass.profile.assign(loop.last - loop.head + 1, {});
  pass.readings.clear();
  warp.profile = pass.profile.data();
  warp.first_profiled = loop.head;
}

// Called at the loop's first instruction. Returns true if the warp can only wait.
inline bool begin_pass(Warp& warp, const PollingLoop& loop, uint32_t mask) {
  PollingPass& pass = warp.poll;
  if (pass.loop == &loop && pass_repeats(warp, mask)) {
    const bool unchanged = std::all_of(pass.readings.begin(), pass.readings.end(),
                                       [](const Reading& r) { return !std::memcmp(r.data, r.value, r.size); });
    // A loop with a barrier in it is gone through by all its warps together or by none.
    const bool awaited = pass.met_barrier && std::any_of(warp.block->warps.begin(), warp.block->warps.end(), [](const Warp& other) {
                           return other.state == WarpState::AtBarrier;
                         });
    if (!awaited) {
      for (const InstructionProfile& counts : pass.profile) warp.block->launch->issued -= counts.issued;
      pass.profile.assign(pass.profile.size(), {});
    }
    if (unchanged && !awaited) {
      park(warp);
      return true;
    }
  }
  keep_pass(warp);
  constexpr uint32_t SELDOM = 64;  // a loop of ordinary loads is most likely no wait
  if (loop.strong || ++pass.visits % SELDOM == 0) start_pass(warp, loop, mask);
  return false;
}

}  // namespace ptxsim
