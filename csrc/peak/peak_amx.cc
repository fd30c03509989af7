// peak_int8_amx, peak_bf16_amx: products of tiles of 16 rows by 64 bytes, 16 x 16 sums each.
#include "csrc/peak/pass.h"
#include "csrc/simd/amx.h"

namespace lowbit {
namespace {

using namespace amx;

constexpr int kChains = 4;  // sums; the other tiles are the operands, as in a GEMM

template <class Dot>
Status multiply_add_tiles(const PeakArgs& args, const Ctx& ctx) {
  return round_pass(args, ctx, [](int64_t rounds) {
    configure_tiles();
    zero_tile<0>();
    zero_tile<1>();
    zero_tile<2>();
    zero_tile<3>();
    zero_tile<4>();
    zero_tile<5>();
    zero_tile<6>();
    zero_tile<7>();
    for (int64_t r = 0; r < rounds; ++r) {
      Dot::template multiply<0, 4, 6>();
      Dot::template multiply<1, 4, 7>();
      Dot::template multiply<2, 5, 6>();
      Dot::template multiply<3, 5, 7>();
    }
    release_tiles();
  });
}

}  // namespace

extern const PeakKernel peak_int8_amx;
const PeakKernel peak_int8_amx = {"peak_int8_amx",
                                  kArchAmx,
                                  {Quantity::int8, int64_t{kChains} * 16 * 16 * 64 * 2},
                                  nullptr,
                                  multiply_add_tiles<SignedBytes>};
extern const PeakKernel peak_bf16_amx;
const PeakKernel peak_bf16_amx = {"peak_bf16_amx",
                                  kArchAmx,
                                  {Quantity::bf16, int64_t{kChains} * 16 * 16 * 32 * 2},
                                  nullptr,
                                  multiply_add_tiles<Bf16Pairs>};

}  // namespace lowbit
