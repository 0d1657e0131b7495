// tcgen05: matrix products whose sums lie in the tensor memory of a block: 128 lanes of 512 columns of 32 bits.
//
// One thread issues a product and goes on; tcgen05.commit lets an mbarrier know when all it issued are done. Here they
// are done at once, but count as accesses of the tensor cores, an agent of its own that race mode orders after
// the thread's earlier work and before whoever saw the mbarrier complete.
#pragma once
#include "mbarrier.hpp"
#include "shared_matrix.hpp"

namespace ptxsim {

constexpr uint32_t TENSOR_LANES = 128, TENSOR_COLUMNS = 512, TENSOR_MEMORY = uint32_t(-3);  // a race's location

[[noreturn]] inline void fault_tensor_memory(Warp& warp, const std::string& message) {
  raise_fault(warp, 0, FaultKind::InvalidTensorMemory, message);
}

inline TensorMemory& tensor_memory(Block& block) {
  TensorMemory& memory = block.async.tensor_memory;
  if (memory.cells.empty()) {
    memory.cells.resize(TENSOR_LANES * TENSOR_COLUMNS);
    memory.written.resize(memory.cells.size());
    memory.allocated.resize(TENSOR_COLUMNS);
    if (block.launch->options.detect_races) memory.shadow.resize(memory.cells.size());
  }
  return memory;
}

// One cell of tensor memory, checked. `agent` is who accesses it: a warp, or the tensor cores.
inline uint32_t& tensor_cell(Warp& agent, uint32_t lane, uint32_t column, Access access) {
  TensorMemory& memory = tensor_memory(*agent.block);
  if (lane >= TENSOR_LANES || column >= TENSOR_COLUMNS || !memory.allocated[column])
    fault_tensor_memory(agent, "access to tensor memory that is not allocated");
  const uint32_t index = lane * TENSOR_COLUMNS + column;
  if (access == Access::Read && !memory.written[index] && agent.block->launch->options.check_uninitialised)
    fault_tensor_memory(agent, "read of uninitialised tensor memory");
  memory.written[index] |= access == Access::Write;
  if (agent.block->launch->options.detect_races)
    check_race(agent, memory.shadow[index], access, WEAK, false, int32_t(TENSOR_MEMORY), 4 * index);
  return memory.cells[index];
}

// Operands: 0 where to write the address to, 1 columns.
inline void execute_tensor_allocate(Warp& warp, const Instruction& i, uint32_t mask) {
  if (mask != FULL_MASK) fault_warp_operation(warp, 0, "tensor memory allocated by a diverged warp");
  TensorMemory& memory = tensor_memory(*warp.block);
  const uint32_t columns = warp.reg<uint32_t>(i, 1)[0];
  if (columns < 32 || columns > TENSOR_COLUMNS || columns & (columns - 1))
    fault_tensor_memory(warp, "columns of tensor memory must be a power of two from 32 to 512");
  uint32_t first = 0, free = 0;
  for (uint32_t column = 0; column < TENSOR_COLUMNS && free < columns; column++) {
    if (memory.allocated[column]) free = 0;
    else if (free++ == 0) first = column;
  }
  if (free < columns) fault_tensor_memory(warp, "tensor memory exhausted: the allocation would wait for ever");
  std::fill_n(memory.allocated.begin() + first, columns, true);
  const uint64_t address = lane_address(warp, i, 0, 0, i.offset);
  std::memcpy(checked_pointer(warp, i, 0, address, 4, Access::Write, Space(i.space)), &first, 4);
}

// Operands: 0 address, 1 columns.
inline void execute_tensor_deallocate(Warp& warp, const Instruction& i, uint32_t mask) {
  if (mask != FULL_MASK) fault_warp_operation(warp, 0, "tensor memory freed by a diverged warp");
  TensorMemory& memory = tensor_memory(*warp.block);
  const uint32_t first = warp.reg<uint32_t>(i, 0)[0], columns = warp.reg<uint32_t>(i, 1)[0];
  for (uint32_t column = first; column < first + columns; column++) {
    if (column >= TENSOR_COLUMNS || !memory.allocated[column])
      fault_tensor_memory(warp, "tensor memory freed that is not allocated");
    memory.allocated[column] = false;
    for (uint32_t lane = 0; lane < TENSOR_LANES; lane++) memory.written[lane * TENSOR_COLUMNS + column] = false;
  }
}

// tcgen05.ld, tcgen05.st of the shapes 32x32b and 16x32bx2 (kind 1). The registers are a list of `count`;
// operand 0: address; immediate: columns between the halves of 16x32bx2. A warp reaches the 32 lanes of its rank modulo 4.
inline void execute_tensor_move(Warp& warp, const Instruction& i, uint32_t mask, bool is_store) {
  if (mask != FULL_MASK) fault_warp_operation(warp, 0, "tensor memory accessed by a diverged warp");
  const uint32_t address = warp.reg<uint32_t>(i, 0)[0] + uint32_t(i.offset);
  const uint32_t first_lane = address >> 16, first_column = address & 0xffff, *list = warp.block->launch->program->register_lists.data() + i.target;
  if (first_lane / WARP_SIZE != warp.index % 4 || (first_lane % WARP_SIZE && !(i.kind && first_lane % WARP_SIZE == 16)))
    fault_tensor_memory(warp, "lanes of tensor memory that this warp cannot access");
  for (uint32_t r = 0; r < i.count; r++) {
    uint32_t* values = reinterpret_cast<uint32_t*>(warp.registers + list[r]);
    for (uint32_t lane = 0; lane < WARP_SIZE; lane++) {
      const bool second_half = i.kind && lane >= 16;
      uint32_t& cell = tensor_cell(warp, first_lane + (second_half ? lane - 16 : lane),
                                   first_column + r + (second_half ? uint32_t(i.immediate) : 0), is_store ? Access::Write : Access::Read);
      is_store ? void(cell = values[lane]) : void(values[lane] = cell);
    }
  }
}

// The tensor cores as an agent that knows what the issuing warp knows.
inline Warp& tensor_cores(Warp& issuer) {
  Warp& agent = issuer.block->async.tensor_cores;
  agent.block = issuer.block;
  agent.index = uint32_t(issuer.block->warps.size());
  agent.pc = issuer.pc;
  join_clock(agent.clock, issuer.clock);
  if (!agent.clock[agent.index]) agent.clock[agent.index] = 1;
  return agent;
}

// tcgen05.mma with A in shared memory or, kind 1, in tensor memory, and B in shared memory. Operands: 0 address of D,
// 1 descriptor or address of A, 2 descriptor of B, 3 instruction descriptor, 4 predicate that keeps the former D.
inline void execute_tensor_mma(Warp& warp, const Instruction& i, uint32_t mask) {
  if (mask & (mask - 1)) fault_warp_operation(warp, 0, "tcgen05.mma by more than one thread");
  const int lane = __builtin_ctz(mask);
  const uint32_t d = warp.reg<uint32_t>(i, 0)[lane] + uint32_t(i.offset), form = warp.reg<uint32_t>(i, 3)[lane];
  auto bits = [&](int first, int count) { return form >> first & ((1u << count) - 1); };
  const uint32_t N = bits(17, 6) * 8, M = bits(24, 5) * 16;
  const MmaType type = MmaType(bits(7, 3));  // the codes are those of MMA_TYPES
  if (bits(0, 4) || bits(4, 2) != 1 || bits(10, 3) != type || type > MMA_TF32 || (M != 64 && M != 128) || N > 256)
    fault_tensor_memory(warp, "a form of tcgen05.mma that is not implemented");
  if (i.element_size != (type == MMA_TF32 ? 4 : 2)) fault_tensor_memory(warp, "tcgen05.mma: kind and descriptor differ");
  auto descriptor = [&](int operand) {
    const uint64_t value = warp.reg<uint64_t>(i, operand)[lane];
    constexpr uint32_t SWIZZLES[] = {16, 0, 128, 0, 64, 0, 32, 0};
    const uint32_t swizzle = SWIZZLES[value >> 61];
    if (!swizzle || value >> 52 & 1 || (value >> 46 & 7) != 1)
      fault_tensor_memory(warp, "a form of matrix descriptor that is not implemented");
    return decode_descriptor(warp, value, swizzle);
  };
  Warp& agent = tensor_cores(warp);
  MatrixReader reader{agent, i, type};
  const uint32_t K = type == MMA_TF32 ? 8 : 16, elements = reader.elements();
  std::vector<float> A(M * K), B(K * N), sums(M * N);
  auto a = [&](uint32_t m, uint32_t k, float v) { A[m * K + k] = bits(13, 1) ? -v : v; };
  auto b = [&](uint32_t n, uint32_t k, float v) { B[k * N + n] = bits(14, 1) ? -v : v; };
  auto tensor_lane = [&](uint32_t m) { return (d >> 16) + (M == 64 ? m / 16 * 32 + m % 16 : m); };
  uint32_t wavefronts = 0;
  if (i.kind) {
    const uint32_t address = warp.reg<uint32_t>(i, 1)[lane] + uint32_t(i.offset2), per_cell = type == MMA_TF32 ? 1 : 2;
    for (uint32_t m = 0; m < M; m++)
      for (uint32_t k = 0; k < K; k++) {
        const uint32_t cell = tensor_cell(agent, tensor_lane(m), (address & 0xffff) + k / per_cell, Access::Read);
        a(m, k, type == MMA_TF32 ? truncate_to_tf32(bit_cast<float>(cell))
                : type == MMA_F16 ? half_to_float(uint16_t(cell >> 16 * (k & 1))) : bf16_to_float(uint16_t(cell >> 16 * (k & 1))));
      }
  } else if (bits(15, 1)) {
    wavefronts += reader.read(descriptor(1), true, 0, K, 0, M / elements, [&](uint32_t k, uint32_t m, float v) { a(m, k, v); });
  } else {
    wavefronts += reader.read(descriptor(1), false, 0, M, 0, K / elements, a);
  }
  if (bits(16, 1))
    wavefronts += reader.read(descriptor(2), true, 0, K, 0, N / elements, [&](uint32_t k, uint32_t n, float v) { b(n, k, v); });
  else
    wavefronts += reader.read(descriptor(2), false, 0, N, 0, K / elements, b);
  const bool keeps = source_predicate(warp, i, 4) >> lane & 1;
  for (uint32_t m = 0; m < M; m++)
    for (uint32_t n = 0; n < N; n++)
      if (keeps) sums[m * N + n] = bit_cast<float>(tensor_cell(agent, tensor_lane(m), (d & 0xffff) + n, Access::Read));
  for (uint32_t m = 0; m < M; m++)
    for (uint32_t k = 0; k < K; k++)
      for (uint32_t n = 0; n < N; n++) sums[m * N + n] += A[m * K + k] * B[k * N + n];
  for (uint32_t m = 0; m < M; m++)
    for (uint32_t n = 0; n < N; n++)
      tensor_cell(agent, tensor_lane(m), (d & 0xffff) + n, Access::Write) = bit_cast<uint32_t>(sums[m * N + n]);
  warp.poll.changed = true;
  InstructionProfile& profile = warp.counts();
  profile.shared_requests++;
  profile.shared_wavefronts += wavefronts;
  profile.tensor_flops += 2ull * M * N * K;
}

// tcgen05.commit: an arrival at an mbarrier once everything issued so far is done. Operand 0: its address.
inline void execute_tensor_commit(Warp& warp, const Instruction& i, uint32_t mask) {
  Warp& agent = tensor_cores(warp);
  for_each_mbarrier(warp, i, mask, 0, Access::Atomic, [&](int lane, uint32_t address, Mbarrier* mbarrier) {
    existing(warp, lane, address, mbarrier);
    warp.block->async.arrivals.push_back({address, agent.clock});
  });
  agent.clock[agent.index]++;
}

inline void register_tensor_memory() {
  auto& table = handler_table();
  table["tcgen05.alloc"] = execute_tensor_allocate;
  table["tcgen05.dealloc"] = execute_tensor_deallocate;
  table["tcgen05.ld"] = [](Warp& w, const Instruction& i, uint32_t mask) { execute_tensor_move(w, i, mask, false); };
  table["tcgen05.st"] = [](Warp& w, const Instruction& i, uint32_t mask) { execute_tensor_move(w, i, mask, true); };
  table["tcgen05.mma"] = execute_tensor_mma;
  table["tcgen05.commit"] = execute_tensor_commit;
}

}  // namespace ptxsim
