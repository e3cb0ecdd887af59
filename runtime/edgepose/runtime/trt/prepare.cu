// One pass from a camera frame to the network's input: convert, resize or crop, normalise, planar.
//
// The numbers are those of preprocess.py and topdown/crop.py: half-pixel centres, bilinear, area averages where a
// letterbox shrinks below half, black beyond a crop's frame. Needs no header, so NVRTC compiles it on any board.
// Built by a host compiler with -DEDGEPOSE_HOST it is the same arithmetic as a plain function, for the tests.

#ifdef EDGEPOSE_HOST
#include <math.h>
#define __device__
#define __global__
struct Index { int x, y, z; };
static thread_local Index blockIdx, threadIdx, blockDim;
#endif

typedef unsigned char byte;
enum Format { NV12, RGBA, BGR };

struct Task {                                                  // kernel.py packs it: 4-byte fields only
  int src_w, src_h, pitch, format;                             // pixels; bytes a row, of both planes; enum Format
  float luma_offset, luma_gain, red_v, green_u, green_v, blue_u;  // NV12 to RGB
  int dst_w, dst_h;                                            // the network's input
  int fit_w, fit_h;                                            // letterbox: the picture inside it, at the top left
  float step_x, step_y;                                        // letterbox: source pixels per input pixel
  int area;                                                    // letterbox: average areas instead of bilinear
  int is_bgr;                                                  // order of the input's channels
  float scale[3], shift[3], pad[3];                            // by channel: value * scale - shift; padding, 0..255
};

struct Colour { float r, g, b; };

static __device__ inline float clamped(float value) { return fminf(fmaxf(value, 0.f), 255.f); }
static __device__ inline int within(int value, int size) { return value < 0 ? 0 : value >= size ? size - 1 : value; }

static __device__ inline Colour pixel(const byte* plane, const byte* chroma, const Task& t, int x, int y) {
  const byte* row = plane + (long long)y * t.pitch;
  if (t.format == RGBA) return {(float)row[4 * x], (float)row[4 * x + 1], (float)row[4 * x + 2]};
  if (t.format == BGR) return {(float)row[3 * x + 2], (float)row[3 * x + 1], (float)row[3 * x]};
  const byte* uv = chroma + (long long)(y / 2) * t.pitch + (x & ~1);
  float luma = t.luma_gain * ((float)row[x] - t.luma_offset), u = (float)uv[0] - 128.f, v = (float)uv[1] - 128.f;
  return {clamped(luma + t.red_v * v), clamped(luma - t.green_u * u - t.green_v * v), clamped(luma + t.blue_u * u)};
}

static __device__ inline void add(Colour& sum, const Colour& c, float weight) {
  sum.r += weight * c.r, sum.g += weight * c.g, sum.b += weight * c.b;
}

// `replicate`: beyond the frame is its edge, else it is black.
static __device__ Colour bilinear(const byte* plane, const byte* chroma, const Task& t, float x, float y, bool replicate) {
  int left = (int)floorf(x), top = (int)floorf(y);
  float right = x - (float)left, below = y - (float)top;
  Colour sum = {0.f, 0.f, 0.f};
  for (int j = 0; j < 2; ++j)
    for (int i = 0; i < 2; ++i) {
      int px = left + i, py = top + j;
      float weight = (i ? right : 1.f - right) * (j ? below : 1.f - below);
      if (replicate) px = within(px, t.src_w), py = within(py, t.src_h);
      if (weight > 0.f && px >= 0 && py >= 0 && px < t.src_w && py < t.src_h)
        add(sum, pixel(plane, chroma, t, px, py), weight);
    }
  return sum;
}

static __device__ Colour average(const byte* plane, const byte* chroma, const Task& t, int dx, int dy) {
  float x1 = dx * t.step_x, x2 = fminf(x1 + t.step_x, (float)t.src_w);
  float y1 = dy * t.step_y, y2 = fminf(y1 + t.step_y, (float)t.src_h);
  Colour sum = {0.f, 0.f, 0.f};
  for (int y = (int)y1; y < y2 && y < t.src_h; ++y) {
    float high = fminf(y + 1.f, y2) - fmaxf((float)y, y1);
    for (int x = (int)x1; x < x2 && x < t.src_w; ++x)
      add(sum, pixel(plane, chroma, t, x, y), high * (fminf(x + 1.f, x2) - fmaxf((float)x, x1)));
  }
  float all = (x2 - x1) * (y2 - y1);
  return {sum.r / all, sum.g / all, sum.b / all};
}

// A coordinate in the frame, as OpenCV's warpAffine has it: its two terms in whole 1/1024 of a pixel, their sum in
// whole 1/32. Exact coordinates differ by up to 7 of 255 at a hard edge.
static __device__ inline float place(const double* row, int dx, int dy) {
  int along = (int)rint(row[0] * dx * 1024.), start = (int)rint((row[1] * dy + row[2]) * 1024.);
  return (float)((along + start + 16) >> 5) / 32.f;
}

// The colour of input pixel (dx, dy) before normalising; false where it is padding.
// `inverse`: a crop's map from its pixels to the frame's, two rows of three; none for a letterbox.
static __device__ bool colour(const byte* plane, const byte* chroma, const Task& t, const double* inverse, int dx, int dy,
                              Colour& out) {
  if (inverse) {
    out = bilinear(plane, chroma, t, place(inverse, dx, dy), place(inverse + 3, dx, dy), false);
    return true;
  }
  if (dx >= t.fit_w || dy >= t.fit_h) return false;
  if (t.area) out = average(plane, chroma, t, dx, dy);
  else out = bilinear(plane, chroma, t, (dx + 0.5f) * t.step_x - 0.5f, (dy + 0.5f) * t.step_y - 0.5f, true);
  return true;
}

static __device__ inline void store(float* to, float value) { *to = value; }
#ifndef EDGEPOSE_HOST
static __device__ inline void store(unsigned short* to, float value) {  // half, without its header
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(*to) : "f"(value));
}
#endif

// dst (B, 3, dst_h, dst_w); block z is the picture of the batch.
template <typename T>
static __device__ void prepare(const byte* plane, const byte* chroma, T* dst, const Task& t, const double* inverses) {
  int dx = blockIdx.x * blockDim.x + threadIdx.x, dy = blockIdx.y * blockDim.y + threadIdx.y, b = blockIdx.z;
  if (dx >= t.dst_w || dy >= t.dst_h) return;
  Colour c;
  float value[3] = {t.pad[0], t.pad[1], t.pad[2]};
  if (colour(plane, chroma, t, inverses ? inverses + 6 * b : 0, dx, dy, c)) {
    value[0] = rintf(t.is_bgr ? c.b : c.r);  // the reference keeps whole values between resizing and normalising
    value[1] = rintf(c.g);
    value[2] = rintf(t.is_bgr ? c.r : c.b);
  }
  long long size = (long long)t.dst_w * t.dst_h, at = 3 * size * b + (long long)dy * t.dst_w + dx;
  for (int k = 0; k < 3; ++k) store(dst + at + k * size, value[k] * t.scale[k] - t.shift[k]);
}

extern "C" __global__ void prepare_f32(const byte* plane, const byte* chroma, float* dst, Task t, const double* inverses) {
  prepare(plane, chroma, dst, t, inverses);
}

#ifndef EDGEPOSE_HOST
extern "C" __global__ void prepare_f16(const byte* plane, const byte* chroma, unsigned short* dst, Task t,
                                       const double* inverses) {
  prepare(plane, chroma, dst, t, inverses);
}
#else
extern "C" void prepare_on_host(const byte* plane, const byte* chroma, float* dst, const Task* t, const double* inverses,
                                int batch) {
  blockDim = {16, 16, 1};
  for (int b = 0; b < batch; ++b)
    for (int y = 0; y < t->dst_h + 15; ++y)
      for (int x = 0; x < t->dst_w + 15; ++x) {
        blockIdx = {x / 16, y / 16, b}, threadIdx = {x % 16, y % 16, 0};
        prepare_f32(plane, chroma, dst, *t, inverses);
      }
}
#endif
