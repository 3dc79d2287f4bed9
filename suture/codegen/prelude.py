"""The functions that generated code calls: one text for C++ and CUDA, so that both compute the same.

In float32 the exponential is 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (range reduction after Cody and Waite, Software Manual for the
Elementary Functions, 1980, chapter 6), the logarithm a polynomial in the mantissa less one, tanh a polynomial near zero and one minus an
exponential elsewhere. The coefficients are minimax fits of relative error below 5e-9; below 1e-7 for the exponential of what is not above zero,
whose argument was rounded to no better when a maximum was taken off. The error function is a quotient of polynomials, of relative error below 6e-8.
In float64 all is left to the C library. Nothing calls fmin or fmax: compilers do not vectorise these without promises about NaN.
"""

from __future__ import annotations

PRELUDE = r"""
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define KFN __device__ __forceinline__
#define K_LIBRARY(function) function
#define K_BITS_TO_FLOAT(i) __int_as_float(i)
#define K_FLOAT_TO_BITS(f) __float_as_int(f)
typedef long long k_i64; typedef int k_i32; typedef short k_i16; typedef signed char k_i8; typedef unsigned char k_u8; typedef unsigned short k_u16;
#else
/* no header is read: in C++ those of the C library take compilers longer than a small kernel does */
#define KFN static inline __attribute__((always_inline))
#define K_LIBRARY(function) __builtin_##function
typedef __INT64_TYPE__ k_i64; typedef __INT32_TYPE__ k_i32; typedef __INT16_TYPE__ k_i16; typedef __INT8_TYPE__ k_i8;
typedef __UINT8_TYPE__ k_u8; typedef __UINT16_TYPE__ k_u16;
KFN float k_bits_to_float(k_i32 i) { float f; __builtin_memcpy(&f, &i, 4); return f; }
KFN k_i32 k_float_to_bits(float f) { k_i32 i; __builtin_memcpy(&i, &f, 4); return i; }
#define K_BITS_TO_FLOAT(i) k_bits_to_float(i)
#define K_FLOAT_TO_BITS(f) k_float_to_bits(f)
#endif
#define K_INF K_BITS_TO_FLOAT(0x7f800000)
#define K_NAN K_BITS_TO_FLOAT(0x7fc00000)

/* integers: division and remainder round down */
KFN k_i64 k_div(k_i64 a, k_i64 b) { k_i64 q = a / b; return q - ((a % b != 0) && ((a < 0) != (b < 0))); }
KFN k_i64 k_mod(k_i64 a, k_i64 b) { k_i64 r = a % b; return r + (((r != 0) && ((r < 0) != (b < 0))) ? b : 0); }
KFN k_i64 k_min_i(k_i64 a, k_i64 b) { return a < b ? a : b; }
KFN k_i64 k_max_i(k_i64 a, k_i64 b) { return a > b ? a : b; }
KFN k_i64 k_abs_i(k_i64 a) { return a < 0 ? -a : a; }

/* minimum and maximum: not a number wins. Two choices, one after the other: compilers make vectors of these, but not of `or` */
KFN float k_min_f(float a, float b) { float m = b < a ? b : a; return b != b ? b : m; }
KFN float k_max_f(float a, float b) { float m = b > a ? b : a; return b != b ? b : m; }
KFN double k_min_d(double a, double b) { double m = b < a ? b : a; return b != b ? b : m; }
KFN double k_max_d(double a, double b) { double m = b > a ? b : a; return b != b ? b : m; }

KFN float k_exp_f(float x) {
  float c = x < -104.0f ? -104.0f : x;
  c = c > 89.0f ? 89.0f : c;
  float n = K_LIBRARY(rintf)(c * 1.44269504088896341f); /* adding a large number and taking it off again would not survive -fassociative-math */
  k_i32 whole = (k_i32)n, half = whole >> 1;
  float r = c - n * 0.693145751953125f;
  r = r - n * 1.42860682030941723e-6f;
  float p = 1.395054045e-03f;
  p = p * r + 8.368917741e-03f;
  p = p * r + 4.166620597e-02f;
  p = p * r + 1.666651815e-01f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  /* times 2^n: half of it by the exponent's bits, the rest by one product, which alone may leave the range; what is zero is a product with
     zero, because processors are slow where a product is too small to be normal */
  float rest = K_BITS_TO_FLOAT((k_i32)((unsigned)(whole - half + 127) << 23));
  rest = x < -103.972084f ? 0.0f : rest;
  return K_BITS_TO_FLOAT((k_i32)((unsigned)K_FLOAT_TO_BITS(p) + ((unsigned)half << 23))) * rest;
}
KFN float k_exp_nonpositive_f(float x) { /* of a number that is not above zero, as in a softmax: 2^n is one shift, and the polynomial a shorter one */
  k_i32 bits = K_FLOAT_TO_BITS(x * 1.44269504088896341f + 12583039.0f); /* 1.5 * 2^23 + 127 more: the last bits are the exponent's of 2^n */
  float n = (float)(k_i32)((unsigned)bits - 0x4b40007fu);
  float r = x - n * 0.693145751953125f;
  r = r - n * 1.42860682030941723e-6f;
  float p = 8.290272206e-03f;
  p = p * r + 4.189816117e-02f;
  p = p * r + 1.666763872e-01f;
  p = p * r + 4.999914765e-01f;
  p = p * r + 9.999997020e-01f;
  p = p * r + 1.0f;
  /* a product, so that what is not a number stays so; what would be too small to be normal is zero */
  float y = p * K_BITS_TO_FLOAT((k_i32)((unsigned)bits << 23));
  return x < -87.3365402f ? 0.0f : y;
}
KFN float k_log_f(float x) {
  int tiny = x < 1.17549435e-38f;
  k_i32 bits = K_FLOAT_TO_BITS(tiny ? x * 8388608.0f : x);
  k_i32 exponent = ((bits >> 23) & 255) - 126 - (tiny ? 23 : 0);
  float m = K_BITS_TO_FLOAT((bits & 0x007fffff) | 0x3f000000); /* from 0.5 to 1 */
  int low = m < 0.707106781186547524f;
  float e = (float)(exponent - low);
  m = (low ? m + m : m) - 1.0f;
  float z = m * m, p = 6.746640056e-02f;
  p = p * m - 1.167565212e-01f;
  p = p * m + 1.188816205e-01f;
  p = p * m - 1.240558922e-01f;
  p = p * m + 1.421955228e-01f;
  p = p * m - 1.666799635e-01f;
  p = p * m + 2.000211924e-01f;
  p = p * m - 2.500000894e-01f;
  p = p * m + 3.333331347e-01f;
  float y = m * z * p + e * -2.12194440e-4f - 0.5f * z; /* ln 2 in two parts, the first exact times any exponent */
  y = m + y + e * 0.693359375f;
  y = x == K_INF ? K_INF : y;
  y = x == 0.0f ? -K_INF : y;
  y = x < 0.0f ? K_NAN : y;
  return x != x ? x : y;
}
KFN float k_tanh_f(float x) {
  float a = x < 0.0f ? -x : x, z = x * x, near = -5.717045162e-03f;
  near = near * z + 2.065058798e-02f;
  near = near * z - 5.374349654e-02f;
  near = near * z + 1.333149076e-01f;
  near = near * z - 3.333328366e-01f;
  near = near * z * x + x;
  float far = 1.0f - 2.0f / (k_exp_f(a + a) + 1.0f);
  far = x < 0.0f ? -far : far;
  return a < 0.625f ? near : far;
}
KFN float k_erf_f(float x) {
  float c = x < -3.92f ? -3.92f : x; /* erf(3.92) is one but for 3e-8 */
  c = c > 3.92f ? 3.92f : c;
  float z = c * c, over = 1.992417076e-08f, under = 9.560097742e-04f;
  over = over * z - 1.957815812e-06f;
  over = over * z + 1.418473112e-04f;
  over = over * z + 3.701493377e-03f;
  over = over * z + 5.057296902e-02f;
  over = over * z + 1.999219209e-01f;
  over = over * z + 1.128379107e+00f;
  under = under * z + 1.435297169e-02f;
  under = under * z + 1.149973199e-01f;
  under = under * z + 5.105078220e-01f;
  under = under * z + 1.0f;
  float y = c * over / under;
  y = y > 1.0f ? 1.0f : y;
  return y < -1.0f ? -1.0f : y;
}
KFN float k_abs_f(float x) { return x < 0.0f ? -x : (x == 0.0f ? 0.0f : x); }
KFN float k_sqrt_f(float x) { return K_LIBRARY(sqrtf)(x); }
KFN float k_rsqrt_f(float x) { return 1.0f / K_LIBRARY(sqrtf)(x); }
KFN float k_sin_f(float x) { return K_LIBRARY(sinf)(x); }
KFN float k_cos_f(float x) { return K_LIBRARY(cosf)(x); }
KFN k_i64 k_bitand_i(k_i64 a, k_i64 b) { return a & b; }
KFN k_i64 k_bitor_i(k_i64 a, k_i64 b) { return a | b; }
KFN k_i64 k_bitxor_i(k_i64 a, k_i64 b) { return a ^ b; }
KFN float k_fmod_f(float x, float y) { return K_LIBRARY(fmodf)(x, y); }
KFN float k_atan2_f(float y, float x) { return K_LIBRARY(atan2f)(y, x); }
KFN double k_fmod_d(double x, double y) { return K_LIBRARY(fmod)(x, y); }
KFN double k_atan2_d(double y, double x) { return K_LIBRARY(atan2)(y, x); }
KFN float k_pow_f(float x, float y) { return K_LIBRARY(powf)(x, y); }
KFN float k_floor_f(float x) { return K_LIBRARY(floorf)(x); }
KFN float k_round_f(float x) { return K_LIBRARY(rintf)(x); }
KFN double k_exp_d(double x) { return K_LIBRARY(exp)(x); }
KFN double k_exp_nonpositive_d(double x) { return K_LIBRARY(exp)(x); }
KFN double k_log_d(double x) { return K_LIBRARY(log)(x); }
KFN double k_tanh_d(double x) { return K_LIBRARY(tanh)(x); }
KFN double k_erf_d(double x) { return K_LIBRARY(erf)(x); }
KFN double k_abs_d(double x) { return K_LIBRARY(fabs)(x); }
KFN double k_sqrt_d(double x) { return K_LIBRARY(sqrt)(x); }
KFN double k_rsqrt_d(double x) { return 1.0 / K_LIBRARY(sqrt)(x); }
KFN double k_sin_d(double x) { return K_LIBRARY(sin)(x); }
KFN double k_cos_d(double x) { return K_LIBRARY(cos)(x); }
KFN double k_pow_d(double x, double y) { return K_LIBRARY(pow)(x, y); }
KFN double k_floor_d(double x) { return K_LIBRARY(floor)(x); }
KFN double k_round_d(double x) { return K_LIBRARY(rint)(x); }

/* short floats are 16 bits in memory; rounding is to nearest, ties to even */
KFN float k_from_bf16(k_u16 h) { return K_BITS_TO_FLOAT((k_i32)((unsigned)h << 16)); }
KFN k_u16 k_to_bf16(float x) {
  unsigned bits = (unsigned)K_FLOAT_TO_BITS(x);
  if (x != x) return (k_u16)((bits >> 16) | 64);
  return (k_u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
KFN float k_from_f16(k_u16 h) {
  unsigned sign = (unsigned)(h & 0x8000) << 16, magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00) return K_BITS_TO_FLOAT((k_i32)(sign | 0x7f800000u | ((magnitude & 0x3ff) << 13)));
  float value = K_BITS_TO_FLOAT((k_i32)(magnitude << 13)) * 5.192296858534828e33f; /* 2^112 */
  return sign ? -value : value;
}
KFN k_u16 k_to_f16(float x) {
  unsigned bits = (unsigned)K_FLOAT_TO_BITS(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (k_u16)(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return (k_u16)(sign | 0x7c00u);
  if (magnitude < 0x38800000u) { /* subnormal: adding 0.5 leaves the rounded bits at the end */
    float sum = K_BITS_TO_FLOAT((k_i32)magnitude) + 0.5f;
    return (k_u16)(sign | ((unsigned)K_FLOAT_TO_BITS(sum) - 0x3f000000u));
  }
  return (k_u16)(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}
"""
