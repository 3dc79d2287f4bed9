// A CUDA driver without a GPU: the same functions, one device, and modules that are libraries of `threads.h`.
// A module's image is the path of the library. What was launched is counted, and can be made to fail.
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

typedef int (*Launch)(unsigned, unsigned, unsigned, int, void**);
struct Function { Launch launch; int dynamic; };
static struct { int devices, fails, launches, architecture, backwards; unsigned blocks, threads, shared; void* stream; char text[256]; } state = {1, 0, 0, 90, 0, 0, 0, 0, nullptr, ""};
enum { INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_IMAGE = 200, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

extern "C" {
void* stand_in_state() { return &state; }
int cuInit(unsigned) { return state.fails == 1 ? NO_DEVICE : 0; }
int cuDeviceGetCount(int* count) { *count = state.devices; return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return ordinal < state.devices ? 0 : INVALID_VALUE; }
int cuDeviceGetName(char* name, int size, int) { snprintf(name, size, "Stand-in"); return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 10: *value = 32; return 0;
    case 16: *value = 4; return 0;
    case 39: *value = 2048; return 0;
    case 75: *value = state.architecture / 10; return 0;
    case 76: *value = state.architecture % 10; return 0;
    case 97: *value = 227 << 10; return 0;
  }
  return INVALID_VALUE;
}
int cuDevicePrimaryCtxRetain(void** context, int) { *context = &state; return 0; }
int cuCtxSetCurrent(void* context) { return context == &state ? 0 : INVALID_VALUE; }
int cuModuleLoadData(void** module, const void* image) {
  *module = dlopen((const char*)image, RTLD_NOW | RTLD_LOCAL);
  if (!*module) snprintf(state.text, sizeof state.text, "%s", dlerror());
  return *module ? 0 : INVALID_IMAGE;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  char symbol[300];
  snprintf(symbol, sizeof symbol, "stand_in_%s", name);
  void* found = dlsym(module, symbol);
  if (!found) return NOT_FOUND;
  *function = new Function{(Launch)found, 0};
  return 0;
}
int cuFuncGetAttribute(int* value, int attribute, void*) {
  switch (attribute) {
    case 0: *value = 1024; return 0;
    case 1: *value = 256; return 0;
    case 3: *value = 0; return 0;
    case 4: *value = 40; return 0;
  }
  return INVALID_VALUE;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (attribute != 8) return INVALID_VALUE;
  ((Function*)function)->dynamic = value;
  return 0;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int threads, size_t) { *blocks = 2048 / threads; return 0; }
int cuLaunchKernel(void* function, unsigned blocks, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz, unsigned shared, void* stream, void** parameters, void** extra) {
  Function* kernel = (Function*)function;
  state.launches += 1; state.blocks = blocks; state.threads = threads; state.shared = shared; state.stream = stream;
  if (!blocks || y != 1 || z != 1 || !threads || threads > 1024 || threads % 32 || ty != 1 || tz != 1 || extra) return INVALID_VALUE;
  if (shared > (48u << 10) && shared > (unsigned)kernel->dynamic) return INVALID_VALUE;
  if (state.fails == 2) return LAUNCH_FAILED;
  return kernel->launch(blocks, threads, shared, state.backwards, parameters) ? LAUNCH_FAILED : 0;
}
int cuGetErrorString(int status, const char** text) {
  switch (status) {
    case INVALID_VALUE: *text = "invalid argument"; return 0;
    case NO_DEVICE: *text = "no CUDA-capable device is detected"; return 0;
    case INVALID_IMAGE: *text = state.text; return 0;
    case NOT_FOUND: *text = "named symbol not found"; return 0;
    case LAUNCH_FAILED: *text = "unspecified launch failure"; return 0;
  }
  return 1;
}
}
