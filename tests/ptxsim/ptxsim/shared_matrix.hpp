// Matrices in shared memory that a descriptor names, as wgmma and tcgen05.mma read them.
//
// They are made of rows of 16 bytes. Eight rows make a core matrix; the descriptor's strides say where the
// next one starts in either direction, and swizzling permutes the rows within each 128 bytes by their address.
// The tensor cores read through the async proxy: what ordinary instructions wrote must be published to it
// by fence.proxy.async.
#pragma once
#include "mma.hpp"

namespace ptxsim {

constexpr uint32_t ROW_BYTES = 16;

struct MatrixDescriptor {
  uint32_t start, leading, stride;  // bytes
  uint32_t swizzle;                 // bytes that lie side by side: 16 (not swizzled), 32, 64 or 128

  // Address of a row. `outer` counts along the dimension that is not contiguous (M or N; K of a transposed
  // matrix), `chunk` counts rows along the contiguous one.
  uint32_t row(bool transposed, uint32_t outer, uint32_t chunk) const {
    const uint32_t chunks = swizzle / ROW_BYTES;
    uint32_t address = start + outer % 8 * swizzle;
    if (swizzle == ROW_BYTES)
      address += transposed ? outer / 8 * leading + chunk * stride : outer / 8 * stride + chunk * leading;
    else if (transposed)
      address += outer / 8 * stride + chunk % chunks * ROW_BYTES + chunk / chunks * leading;
    else
      address += outer / 8 * stride + chunk * ROW_BYTES;
    return address ^ (address >> 3 & (swizzle - ROW_BYTES));
  }
};

inline MatrixDescriptor decode_descriptor(Warp& warp, uint64_t bits, uint32_t swizzle) {
  auto field = [&](int first) { return uint32_t(bits >> first & 0x3fff) * ROW_BYTES; };
  if (bits >> 49 & 7) fault_warp_operation(warp, 0, "matrix descriptor with a base offset, which is not implemented");
  return {field(0), field(16), field(32), swizzle};
}

// Whether fence.proxy.async stands between an ordinary write and a read by the async proxy. A write that is
// not ordered before the read at all is reported as a race.
inline void check_proxy_fence(Warp& warp, const AccessStamp& writer, uint64_t offset) {
  const Block& block = *warp.block;
  if (writer.block_plus_one != block.linear + 1 || !ordered_before(writer, warp)) return;
  if (writer.clock > warp.clock[block.agents() + writer.warp])
    report_race(warp, writer, MISSING_PROXY_FENCE, -2, offset);
}

// fence.proxy.async: what is known to be written by now is published to the async proxy.
inline void execute_proxy_fence(Warp& warp, const Instruction&, uint32_t) {
  const uint32_t agents = warp.block->agents();
  for (uint32_t k = 0; k < agents; k++) warp.clock[agents + k] = std::max(warp.clock[agents + k], warp.clock[k]);
  warp.clock[warp.index]++;
}

// One matrix operand, read in rows: out(outer, contiguous index, value).
struct MatrixReader {
  Warp& warp;
  const Instruction& i;
  MmaType type;
  std::vector<uint32_t> rows{};  // addresses of what was read

  uint32_t elements() const { return type == MMA_TF32 ? 4 : 8; }

  template <class Out>
  uint32_t read(const MatrixDescriptor& descriptor, bool transposed, uint32_t first_outer, uint32_t outers,
                uint32_t first_chunk, uint32_t chunks, Out out) {
    const size_t first_row = rows.size();
    for (uint32_t outer = 0; outer < outers; outer++)
      for (uint32_t chunk = 0; chunk < chunks; chunk++) {
        const uint32_t address = descriptor.row(transposed, first_outer + outer, first_chunk + chunk);
        const uint8_t* row = checked_pointer(warp, i, 0, address, ROW_BYTES, Access::Read, SPACE_SHARED);
        if (warp.block->launch->options.detect_races)
          for (uint32_t k = 0; k < ROW_BYTES; k++)
            check_proxy_fence(warp, warp.block->shared_shadow[address + k].writer, address);
        rows.push_back(address);
        for (uint32_t e = 0; e < elements(); e++) out(outer, chunk * elements() + e, value(row, e));
      }
    return wavefronts(first_row, chunks);
  }

 private:
  float value(const uint8_t* row, uint32_t e) const {
    uint32_t word = 0;
    std::memcpy(&word, row + e * ROW_BYTES / elements(), ROW_BYTES / elements());
    return type == MMA_TF32 ? truncate_to_tf32(bit_cast<float>(word))
           : type == MMA_F16 ? half_to_float(uint16_t(word)) : bf16_to_float(uint16_t(word));
  }
  // Of reading one core matrix after another: one each where there are no bank conflicts.
  uint32_t wavefronts(size_t first_row, uint32_t chunks) const {
    uint32_t count = 0;
    for (size_t first = first_row; first < rows.size(); first += 8 * chunks)
      for (uint32_t chunk = 0; chunk < chunks; chunk++) {
        uint64_t address[WARP_SIZE];
        for (uint32_t k = 0; k < 8; k++) address[k] = rows[first + k * chunks + chunk];
        count += count_wavefronts(address, 0xff, ROW_BYTES);
      }
    return count;
  }
};

}  // namespace ptxsim
