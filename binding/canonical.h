// A canonical weight as positional arguments: shape, kind, groupN, groupK, scaleDtype, zeroType,
// codes, scales, zeros. The same order serves every function that takes one.
#pragma once

#include "binding/args.h"
#include "csrc/format/pack.h"

namespace lowbit::binding {

// The first six. Fills the group sizes of 0 in and refuses what is no format.
Format read_format(Reader& r, int64_t* n, int64_t* k);

// A canonical weight with the sizes of its arrays.
struct CanonicalBytes {
  Canonical weight;
  uint8_t* codes;
  uint8_t* scales;
  uint8_t* zeros;
  int64_t codes_bytes, scales_bytes, zeros_bytes;
};

// All nine, as buffers of the right sizes that the call is to fill.
CanonicalBytes read_buffers(Reader& r);
// All nine, as a weight whose numbers are checked too.
Canonical read_canonical(Reader& r);

}  // namespace lowbit::binding
