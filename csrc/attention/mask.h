// Masks: which keys a query position sees. Causal and window masks leave every row one interval of
// keys, and both ends of that interval never fall from one position to the next. Everything that
// rows do about masks (tiles skipped, tiles with a ragged edge, rows without keys) follows from
// these two facts, so a mask is never stored or looked up.
//
//   keys       0 1 2 3 4 5 6 7        seq_q = 4, seq_kv = 8, causal, window_left = 2
//   position 4     x x x . . .        row 0 stands at 0 + (8 - 4) = 4
//   position 5     . x x x . .        x visible: [p - window_left, p] cut to [0, seq_kv)
//   position 6     . . x x x .
//   position 7     . . . x x x
#pragma once

#include <cstdint>

namespace lowbit {

struct KeyRange {
  int64_t begin, end;  // begin <= end
};

// left and right: how far a position sees to either side, -1 without limit.
struct Mask {
  int64_t left, right;
};

static constexpr Mask make_mask(bool causal, int64_t window_left, int64_t window_right) {
  return {window_left, causal ? 0 : window_right};  // causal is right = 0, the tightest right limit
}

static constexpr KeyRange visible_keys(Mask mask, int64_t position, int64_t seq_kv) {
  KeyRange range = {0, seq_kv};
  // Compared as limit < distance, so that the largest limits can't overflow.
  if (mask.left >= 0 && mask.left < position) range.begin = position - mask.left;
  if (mask.right >= 0 && mask.right < seq_kv - 1 - position) {
    range.end = position + mask.right + 1;
  }
  if (range.begin > seq_kv) range.begin = seq_kv;
  if (range.end < range.begin) range.end = range.begin;
  return range;
}

// The keys that any of the positions first to last sees.
static constexpr KeyRange visible_keys(Mask mask, int64_t first, int64_t last, int64_t seq_kv) {
  KeyRange range = {visible_keys(mask, first, seq_kv).begin, visible_keys(mask, last, seq_kv).end};
  if (range.end < range.begin) range.end = range.begin;
  return range;
}

}  // namespace lowbit
