// wgmma: four warps multiply matrices in shared memory (the left one may lie in registers) while they go on.
//
// Each warp computes its 16 of the 64 rows. Sums are formed when the instruction is issued; until the warp waits for
// them the accumulators may not be touched and nothing may write to the operands. Rounding is that of mma.hpp.
#pragma once
#include "shared_matrix.hpp"

namespace ptxsim {

constexpr uint32_t WARPGROUP = 4;
constexpr uint32_t REGISTER_BYTES = 64;  // registers start at multiples of it (lowering._allocate)

inline WgmmaState& wgmma_state(Warp& warp) {
  WgmmaState& state = warp.wgmma;
  if (state.group.empty()) {
    state.group.resize(warp.register_storage.size() / REGISTER_BYTES);
    state.fenced.resize(state.group.size());
  }
  return state;
}

[[noreturn]] inline void fault_pending_wgmma(Warp& warp, const std::string& message) {
  raise_fault(warp, 0, FaultKind::PendingWgmma, message);
}

// Before any other instruction that names a register of some wgmma. A plain move only renames it: compilers put
// moves between one wgmma and the next, of which the assembler leaves nothing.
inline void track_wgmma_registers(Warp& warp, const Instruction& i) {
  WgmmaState& state = wgmma_state(warp);
  if (i.wgmma == RegisterUse::Renames) {
    const uint32_t to = i.operand[0] / REGISTER_BYTES, from = i.operand[1] / REGISTER_BYTES;
    state.group[to] = state.group[from];
    state.fenced[to] = state.fenced[from];
    return;
  }
  auto touch = [&](uint32_t offset) {
    if (state.group[offset / REGISTER_BYTES] > state.completed)
      fault_pending_wgmma(warp, "register of a wgmma that has not been waited for");
    state.fenced[offset / REGISTER_BYTES] = false;
  };
  for (int k = 0; k < MAX_OPERANDS; k++)
    if (i.width[k] && i.operand[k] != NO_OPERAND) touch(i.operand[k]);
}

// Operands: 0 predicate that keeps the former D, 1 descriptor of A (or none), 2 descriptor of B, 3..6 registers
// of A. The registers of D are a list. count: N / 8; kind: flags below above the type; offset, offset2: signs of A, B.
enum WgmmaFlags : uint8_t { WGMMA_TRANSPOSED_A = 16, WGMMA_TRANSPOSED_B = 32, WGMMA_HALF_SUMS = 64 };

inline void execute_wgmma(Warp& warp, const Instruction& i, uint32_t mask) {
  Block& block = *warp.block;
  if (mask != FULL_MASK || warp.index / WARPGROUP * WARPGROUP + WARPGROUP > block.warps.size())
    fault_warp_operation(warp, 0, "wgmma outside a full group of four warps");
  auto uniform = [&](int operand) {
    const uint64_t* lanes = warp.reg<uint64_t>(i, operand);
    for (int lane = 1; lane < WARP_SIZE; lane++)
      if (lanes[lane] != lanes[0]) fault_warp_operation(warp, lane, "matrix descriptor differs between lanes");
    constexpr uint32_t SWIZZLES[] = {16, 128, 64, 32};
    return decode_descriptor(warp, lanes[0], SWIZZLES[lanes[0] >> 62]);
  };
  const MmaType type = MmaType(i.kind & 15);
  const bool half_sums = i.kind & WGMMA_HALF_SUMS, a_in_registers = i.operand[1] == NO_OPERAND;
  const uint32_t N = 8u * i.count, K = type == MMA_TF32 ? 8 : 16, quarter = warp.index % WARPGROUP;
  const uint32_t d_registers = half_sums ? N / 4 : N / 2;
  const uint32_t* d_list = block.launch->program->register_lists.data() + i.target;

  WgmmaState& state = wgmma_state(warp);
  auto mark = [&](uint32_t offset) {
    const uint32_t slot = offset / REGISTER_BYTES;
    if (!state.fenced[slot])
      fault_pending_wgmma(warp, "register of wgmma accessed since the last wgmma.fence (or before any)");
    state.group[slot] = std::max(state.group[slot], state.committed + 1);
  };
  for (uint32_t r = 0; r < d_registers; r++) mark(d_list[r]);
  if (a_in_registers)
    for (int r = 0; r < 4; r++) mark(i.operand[3 + r]);

  float A[16][16], B[16][256], C[16][256];
  MatrixReader reader{warp, i, type};
  const uint32_t row_elements = reader.elements();
  InstructionProfile& profile = warp.counts();
  profile.shared_requests++;
  profile.tensor_flops += 2 * 16 * N * K;
  if (a_in_registers) {
    float values[2 * WARP_SIZE];
    const uint32_t per_register = type == MMA_TF32 ? 1 : 2;
    for (int r = 0; r < 4; r++) {
      unpack_operand(warp.reg<uint32_t>(i, 3 + r), type, values);
      for (uint32_t lane = 0; lane < WARP_SIZE; lane++)
        for (uint32_t e = 0; e < per_register; e++)
          A[lane / 4 + 8 * (r & 1)][lane % 4 * per_register + e + 4 * per_register * (r >> 1)] = values[lane * per_register + e];
    }
  } else if (i.kind & WGMMA_TRANSPOSED_A) {
    profile.shared_wavefronts += reader.read(uniform(1), true, 0, K, 2 * quarter, 2,
                                             [&](uint32_t k, uint32_t m, float v) { A[m][k] = v; });
  } else {
    profile.shared_wavefronts += reader.read(uniform(1), false, 16 * quarter, 16, 0, K / row_elements,
                                             [&](uint32_t m, uint32_t k, float v) { A[m][k] = v; });
  }
  const bool transposed_b = i.kind & WGMMA_TRANSPOSED_B;
  const uint32_t wavefronts =
      transposed_b ? reader.read(uniform(2), true, 0, K, 0, N / row_elements, [&](uint32_t k, uint32_t n, float v) { B[k][n] = v; })
                   : reader.read(uniform(2), false, 0, N, 0, K / row_elements, [&](uint32_t n, uint32_t k, float v) { B[k][n] = v; });
  if (quarter == 0) profile.shared_wavefronts += wavefronts;  // the four warps share it

  // Where the sums of each lane's registers lie in C.
  auto for_each_sum = [&](auto f) {
    for (uint32_t r = 0; r < d_registers; r++) {
      uint32_t* d = reinterpret_cast<uint32_t*>(warp.registers + d_list[r]);
      for (uint32_t lane = 0; lane < WARP_SIZE; lane++) {
        if (half_sums) {
          float* sum = &C[lane / 4 + 8 * (r & 1)][r / 2 * 8 + lane % 4 * 2];
          f(d[lane], sum);
        } else {
          f(d[lane], &C[lane / 4 + 8 * (r / 2 & 1)][r / 4 * 8 + lane % 4 * 2 + (r & 1)]);
        }
      }
    }
  };
  const uint32_t keeps = source_predicate(warp, i, 0);
  for_each_sum([&](uint32_t bits, float* sum) {
    if (half_sums) {
      sum[0] = keeps ? half_to_float(uint16_t(bits)) : 0;
      sum[1] = keeps ? half_to_float(uint16_t(bits >> 16)) : 0;
    } else {
      *sum = keeps ? bit_cast<float>(bits) : 0;
    }
  });
  const float sign = float(i.offset * i.offset2);
  for (uint32_t row = 0; row < 16; row++)
    for (uint32_t k = 0; k < K; k++) {
      const float a = sign * A[row][k];
      for (uint32_t column = 0; column < N; column++) C[row][column] += a * B[k][column];
    }
  for_each_sum([&](uint32_t& bits, const float* sum) {
    bits = half_sums ? float_to_half(sum[0]) | uint32_t(float_to_half(sum[1])) << 16 : bit_cast<uint32_t>(*sum);
  });

  warp.poll.changed = true;  // a loop with this in it waits for nothing else
  if (block.async.pending_reads.empty()) block.async.pending_reads.resize(block.shared.size() / ROW_BYTES + 1);
  for (uint32_t row : reader.rows) block.async.pending_reads[row / ROW_BYTES]++;
  state.operations.push_back({warp.pc, state.committed + 1, std::move(reader.rows)});
}

// Registers may now be used by wgmma whatever touched them before.
inline void execute_wgmma_fence(Warp& warp, const Instruction&, uint32_t) {
  WgmmaState& state = wgmma_state(warp);
  state.fenced.assign(state.fenced.size(), true);
}

inline void execute_wgmma_commit(Warp& warp, const Instruction&, uint32_t) { warp.wgmma.committed++; }

// immediate: how many of the latest groups may still be pending.
inline void execute_wgmma_wait(Warp& warp, const Instruction& i, uint32_t) {
  WgmmaState& state = warp.wgmma;
  Block& block = *warp.block;
  if (state.committed > i.immediate) state.completed = std::max(state.completed, state.committed - uint32_t(i.immediate));
  size_t done = 0;
  for (; done < state.operations.size() && state.operations[done].group <= state.completed; done++) {
    const MatrixOperation& operation = state.operations[done];
    const uint32_t here = warp.pc;
    warp.pc = operation.pc;  // its reads last until now
    for (uint32_t row : operation.rows) {
      block.async.pending_reads[row / ROW_BYTES]--;
      if (block.launch->options.detect_races)
        for (uint32_t k = 0; k < ROW_BYTES; k++)
          check_race(warp, block.shared_shadow[row + k], Access::Read, WEAK, false, -2, row);
    }
    warp.pc = here;
  }
  state.operations.erase(state.operations.begin(), state.operations.begin() + done);
}

inline void register_wgmma() {
  auto& table = handler_table();
  table["fence.proxy.async"] = execute_proxy_fence;
  table["wgmma.mma_async"] = execute_wgmma;
  table["wgmma.fence"] = execute_wgmma_fence;
  table["wgmma.commit_group"] = execute_wgmma_commit;
  table["wgmma.wait_group"] = execute_wgmma_wait;
}

}  // namespace ptxsim
