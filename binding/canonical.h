// A canonical weight as positional arguments: shape, kind, groupN, groupK, scaleDtype, zeroType,
// tableType, planes, then codes, scales, zeros, table, tensorScale. The same order serves every
// function that takes one.
#pragma once

#include "binding/args.h"
#include "csrc/format/pack.h"

namespace lowbit::binding {

// What it means: all before the arrays. Fills the group sizes of 0 in and refuses what is no
// format. k counts the columns of all planes.
Format read_format(Reader& r, int64_t* n, int64_t* k);

// A canonical weight with the sizes of its arrays.
struct CanonicalBytes {
  Canonical weight;
  Buffers buffers;
  Sizes sizes;
};

// The arrays of a weight of this format, of the right sizes.
CanonicalBytes read_arrays(Reader& r, const Format& format, int64_t n, int64_t k);
// The whole, as buffers of the right sizes that the call is to fill.
CanonicalBytes read_buffers(Reader& r);
// The whole, as a weight whose numbers are checked too.
Canonical read_canonical(Reader& r);

}  // namespace lowbit::binding
