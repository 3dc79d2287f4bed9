// A GPU's threads on a CPU: the printed CUDA text runs as it stands, every thread of a block as a coroutine of its own.
//
// A warp goes as far as it can before the next one starts, thread by thread, from the first to the last or backwards. So two threads that
// do not wait for each other are seen in both orders, and one that reads what another has not written yet reads poison. Threads of a block that wait
// at different barriers, and addresses that an instruction would refuse, stop the launch with a message.
#pragma once
#define _GLIBCXX_INCLUDE_NEXT_C_HEADERS 1  // the C library's own headers: those of the C++ library take most of the time of a compilation
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __CUDACC__ 1
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static __attribute__((section("stand_in_shared")))

struct StandInIndex { unsigned x; };
static StandInIndex threadIdx, blockIdx, blockDim;
struct __attribute__((aligned(16))) uint4 { unsigned x, y, z, w; };
struct __attribute__((aligned(8))) uint2 { unsigned x, y; };

extern "C" { extern unsigned char __start_stand_in_shared[] __attribute__((weak)), __stop_stand_in_shared[] __attribute__((weak)); }
alignas(16) static unsigned char stand_in_dynamic[228 << 10];
static char stand_in_text[256];
extern "C" const char* stand_in_message() { return stand_in_text; }

enum StandInState { READY, AT_BARRIER, AT_WARP, DONE };
struct StandInThread {
  ucontext_t first;
  jmp_buf place;
  bool started = false;
  StandInState state = READY;
  int line = 0;
  unsigned turn = 0;
  char* stack = nullptr;
};
static StandInThread stand_in_threads[1024];
const unsigned STAND_IN_STACK = 128 << 10;
static jmp_buf stand_in_scheduler;
static void (*stand_in_body)(const void*);
static const void* stand_in_given;
struct StandInSlot { unsigned char bytes[32]; };
static StandInSlot stand_in_slots[2][1024];

static void stand_in_wait(StandInState state, int line) {
  StandInThread& own = stand_in_threads[threadIdx.x];
  own.state = state;
  own.line = line;
  unsigned index = threadIdx.x;
  if (!_setjmp(own.place)) _longjmp(stand_in_scheduler, 1);
  threadIdx.x = index;
}
[[noreturn]] static void stand_in_fail(const char* what) {
  snprintf(stand_in_text, sizeof stand_in_text, "%s (block %u, thread %u)", what, blockIdx.x, threadIdx.x);
  _longjmp(stand_in_scheduler, 2);
}
static void stand_in_start() {
  unsigned index = threadIdx.x;
  stand_in_body(stand_in_given);
  threadIdx.x = index;
  stand_in_threads[index].state = DONE;
  _longjmp(stand_in_scheduler, 1);
}

// What all threads of a warp put down, and then read of each other. Two sides take turns: nobody is two exchanges ahead.
template <class T> static const StandInSlot* stand_in_exchange(const T& value, int line) {
  static_assert(sizeof(T) <= sizeof(StandInSlot), "too large to exchange");
  StandInSlot* side = stand_in_slots[stand_in_threads[threadIdx.x].turn++ & 1];
  memcpy(side[threadIdx.x].bytes, &value, sizeof(T));
  stand_in_wait(AT_WARP, line);
  return side + (threadIdx.x & ~31u);
}
template <class T> static T stand_in_shuffle(T value, unsigned lane, int line) {
  const StandInSlot* slots = stand_in_exchange(value, line);
  T other;
  memcpy(&other, slots[lane & 31].bytes, sizeof(T));
  return other;
}
#define __syncthreads() stand_in_wait(AT_BARRIER, __LINE__)
#define __syncwarp() stand_in_wait(AT_WARP, __LINE__)
#define __shfl_xor_sync(mask, value, step) stand_in_shuffle(value, (threadIdx.x & 31) ^ (step), __LINE__)
#define __shfl_up_sync(mask, value, step) \
  stand_in_shuffle(value, (threadIdx.x & 31) >= (unsigned)(step) ? (threadIdx.x & 31) - (step) : (threadIdx.x & 31), __LINE__)

static inline float __int_as_float(int i) { float f; memcpy(&f, &i, 4); return f; }
static inline int __float_as_int(float f) { int i; memcpy(&i, &f, 4); return i; }
static inline double __longlong_as_double(long long i) { double f; memcpy(&f, &i, 8); return f; }
static inline long long __double_as_longlong(double f) { long long i; memcpy(&i, &f, 8); return i; }
template <class T> static inline T atomicAdd(T* place, T value) { T before = *place; *place = before + value; return before; }
template <class T> static inline T atomicMax(T* place, T value) { T before = *place; *place = before < value ? value : before; return before; }
template <class T> static inline T atomicMin(T* place, T value) { T before = *place; *place = value < before ? value : before; return before; }
template <class T> static inline T atomicCAS(T* place, T seen, T value) { T before = *place; if (before == seen) *place = value; return before; }

// ldmatrix.m8n8.x4: lane 8 i + r says where row r of matrix i is; lane 4 r + c receives columns 2 c and 2 c + 1 of row r, or, transposed, of column r
static void stand_in_ldmatrix(unsigned* r, const uint16_t* row, bool transposed) {
  if ((uintptr_t)row % 16) stand_in_fail("ldmatrix of an address that is no multiple of 16");
  const StandInSlot* slots = stand_in_exchange(row, __LINE__);
  unsigned lane = threadIdx.x & 31, high = lane >> 2, low = lane & 3;
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    uint16_t pair[2];
    for (unsigned k = 0; k < 2; ++k) {
      const uint16_t* from;
      memcpy(&from, slots[matrix * 8 + (transposed ? 2 * low + k : high)].bytes, sizeof from);
      pair[k] = from[transposed ? high : 2 * low + k];
    }
    r[matrix] = pair[0] | (unsigned)pair[1] << 16;
  }
}
// mma.m16n8k16: the operands and the sum lie over the lanes as the PTX manual draws them
static void stand_in_mma(float* c, const unsigned* a, const unsigned* b, float (*number)(uint16_t)) {
  struct { unsigned a[4], b[2]; } own = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const StandInSlot* slots = stand_in_exchange(own, __LINE__);
  unsigned lane = threadIdx.x & 31;
  for (unsigned k = 0; k < 4; ++k) {
    unsigned row = (lane >> 2) + (k >> 1) * 8, column = (lane & 3) * 2 + (k & 1);
    float sum = c[k];
    for (unsigned depth = 0; depth < 16; ++depth) {
      unsigned left, right, shift = (depth & 1) * 16;
      memcpy(&left, slots[(row % 8) * 4 + (depth % 8) / 2].bytes + 4 * ((row >= 8) + 2 * (depth >= 8)), 4);
      memcpy(&right, slots[column * 4 + (depth % 8) / 2].bytes + 16 + 4 * (depth >= 8), 4);
      sum += number((uint16_t)(left >> shift)) * number((uint16_t)(right >> shift));
    }
    c[k] = sum;
  }
}

static int stand_in_launch(unsigned blocks, unsigned threads, unsigned dynamic, bool backwards) {
  blockDim.x = threads;
  stand_in_text[0] = 0;
  if (dynamic > sizeof stand_in_dynamic) { snprintf(stand_in_text, sizeof stand_in_text, "%u bytes of shared memory", dynamic); return 1; }
  if (threads > 1024) { snprintf(stand_in_text, sizeof stand_in_text, "%u threads in a block", threads); return 1; }
  for (unsigned turn = 0; turn < blocks; ++turn) {
    blockIdx.x = backwards ? blocks - 1 - turn : turn;
    if (&__start_stand_in_shared[0]) memset(__start_stand_in_shared, 0xff, __stop_stand_in_shared - __start_stand_in_shared);
    memset(stand_in_dynamic, 0xff, dynamic);
    for (unsigned k = 0; k < threads; ++k) {
      StandInThread& each = stand_in_threads[k];
      each.started = false;
      each.state = READY;
      each.turn = 0;
      if (!each.stack) each.stack = (char*)calloc(STAND_IN_STACK, 1);
    }
    volatile unsigned done = 0;
    // a barrier opens when every thread of the block is at it, a warp's when its 32 are
    auto open = [&](unsigned from, unsigned to, StandInState state) {
      for (unsigned k = from; k < to; ++k) {
        const StandInThread& each = stand_in_threads[k];
        if (each.state != state || each.line != stand_in_threads[from].line) return false;
      }
      for (unsigned k = from; k < to; ++k) stand_in_threads[k].state = READY;
      return true;
    };
    while (done < threads) {
      // one warp goes as far as it can before the next one starts
      for (volatile unsigned turn_of = 0; turn_of < threads; turn_of = turn_of + 32) {
        const unsigned warp = backwards ? threads - 32 - turn_of : turn_of;
        do {
          for (volatile unsigned k = 0; k < 32; k = k + 1) {
            unsigned index = warp + (backwards ? 31 - k : k);
            if (stand_in_threads[index].state != READY) continue;
            int back = _setjmp(stand_in_scheduler);
            if (back == 0) {
              threadIdx.x = index;
              StandInThread& each = stand_in_threads[index];
              if (each.started) _longjmp(each.place, 1);
              each.started = true;
              getcontext(&each.first);
              each.first.uc_stack.ss_sp = each.stack;
              each.first.uc_stack.ss_size = STAND_IN_STACK;
              each.first.uc_link = nullptr;
              makecontext(&each.first, stand_in_start, 0);
              setcontext(&each.first);
            }
            if (back == 2) return 1;
            if (stand_in_threads[threadIdx.x].state == DONE) done = done + 1;
          }
        } while (open(warp, warp + 32, AT_WARP));
      }
      if (done < threads && !open(0, threads, AT_BARRIER)) {
        snprintf(stand_in_text, sizeof stand_in_text, "threads of block %u wait at different barriers", blockIdx.x);
        return 1;
      }
    }
  }
  return 0;
}
template <class Body> static int stand_in_run(unsigned blocks, unsigned threads, unsigned dynamic, bool backwards, Body body) {
  stand_in_body = [](const void* given) { (*(const Body*)given)(); };
  stand_in_given = &body;
  return stand_in_launch(blocks, threads, dynamic, backwards);
}
