/* ---- on a GPU ---- */

extern "C" int @NAME@_run_0(const k_i64 *k_n, void *const *k_p, void *stream); /* every kernel, in order; what CUDA says */

struct @NAME@_net {
  int device;
  cudaStream_t stream;
  unsigned char *weights, *arena, *ends; /* on the device; `ends` holds inputs and outputs of a run on host memory */
  float *outside;                        /* on the device */
  int64_t room, ends_room;               /* bytes of the arena and of the ends */
  bool planned;                          /* whether `plan` is that of `sizes` */
  int64_t sizes[SIZES + 1];
  Plan plan;
  void *slots[SLOTS + 1];
};

namespace {

const int outside_slots[LOOKUPS + 1] = {@FLAG_SLOTS@};
const uintptr_t ALIGNED = 16; /* what kernels take addresses to be a multiple of */

int refused(int code, const char *what) {
  const cudaError_t error = (cudaError_t)code;
  return fail(error == cudaErrorMemoryAllocation ? @NAME@_MEMORY : @NAME@_DEVICE, "%s: %s", what, cudaGetErrorString(error));
}

int load_weights(@NAME@_net *net, const char *path) {
  int64_t offsets[WEIGHTS + 1], length, longest = 0;
  st_file file;
  if (!st_open(&file, path)) return fail(@NAME@_WEIGHTS, "%s: %s", path, file.error);
  int code = place_weights(file, offsets, &length);
  for (int k = 0; k < WEIGHTS && !code; ++k) {
    const st_tensor *tensor = st_find(&file, weights[k].name);
    if ((int64_t)(tensor->end - tensor->begin) > longest) longest = (int64_t)(tensor->end - tensor->begin);
  }
  unsigned char *passing = code ? NULL : (unsigned char *)malloc((size_t)longest + 1);
  if (!code && !passing) code = fail(@NAME@_MEMORY, "there is no memory to read the weights");
  if (!code)
    if (const cudaError_t error = cudaMalloc((void **)&net->weights, (size_t)length + ARENA_ALIGNMENT)) code = refused(error, "the weights");
  for (int k = 0; k < WEIGHTS && !code; ++k) {
    const st_tensor *tensor = st_find(&file, weights[k].name);
    net->slots[weights[k].slot] = net->weights + offsets[k];
    if (!st_read(&file, tensor, passing)) code = fail(@NAME@_WEIGHTS, "%s: %s", path, file.error);
    else if (const cudaError_t error = cudaMemcpy(net->weights + offsets[k], passing, (size_t)(tensor->end - tensor->begin), cudaMemcpyHostToDevice))
      code = refused(error, "the weights");
  }
  free(passing);
  st_close(&file);
  return code;
}

int grow(unsigned char **block, int64_t *room, int64_t length) {
  if (length <= *room) return @NAME@_OK;
  cudaFree(*block); /* waits for what still reads it */
  *block = NULL;
  *room = 0;
  if (const cudaError_t error = cudaMalloc((void **)block, (size_t)length)) return refused(error, "memory of the device");
  *room = length;
  return @NAME@_OK;
}

int plan_for(@NAME@_net *net, const int64_t *sizes) {
  if (net->planned && !memcmp(net->sizes, sizes, SIZES * sizeof *sizes)) return @NAME@_OK;
  net->planned = false;
  if (const int code = make_plan(sizes, &net->plan)) return code;
  if (const int code = grow(&net->arena, &net->room, net->plan.length)) return code;
  for (int k = 0; k < VALUES; ++k) net->slots[value_shapes[k].slot] = net->arena + net->plan.offset[k];
  for (int k = 0; k < SIZES; ++k) net->sizes[k] = sizes[k];
  net->planned = true;
  return @NAME@_OK;
}

int prepare_run(@NAME@_net *net, const int64_t *sizes, const @NAME@_buffer *inputs, const @NAME@_buffer *outputs) {
  static const int64_t none[1] = {0};
  if (!net || (SIZES > 0 && !sizes)) return fail(@NAME@_ARGUMENT, net ? "there are no sizes" : "there is no instance");
  if (const cudaError_t error = cudaSetDevice(net->device)) return refused(error, "the device");
  if (const int code = plan_for(net, SIZES > 0 ? sizes : none)) return code;
  return check_buffers(net->plan, inputs, outputs);
}

}  // namespace

int @NAME@_create(@NAME@_net **made, const char *path) {
  if (made) *made = NULL;
  if (!made || !path) return fail(@NAME@_ARGUMENT, "there is no %s", made ? "path of weights" : "place for the instance");
  @NAME@_net *net = (@NAME@_net *)calloc(1, sizeof *net);
  if (!net) return fail(@NAME@_MEMORY, "there is no memory for an instance");
  int code = @NAME@_OK;
  if (const cudaError_t error = cudaGetDevice(&net->device)) code = refused(error, "the device");
  if (!code) code = load_weights(net, path);
  if (!code)
    if (const cudaError_t error = cudaStreamCreate(&net->stream)) code = refused(error, "a stream");
  if (!code)
    if (const cudaError_t error = cudaMalloc((void **)&net->outside, (LOOKUPS + 1) * ARENA_ALIGNMENT)) code = refused(error, "memory of the device");
  if (code) {
    @NAME@_destroy(net);
    return code;
  }
  for (int k = 0; k < LOOKUPS; ++k)
    if (outside_slots[k] >= 0) net->slots[outside_slots[k]] = (unsigned char *)net->outside + k * ARENA_ALIGNMENT;
  *made = net;
  return @NAME@_OK;
}

int @NAME@_run_device(@NAME@_net *net, const int64_t *sizes, const @NAME@_buffer *inputs, const @NAME@_buffer *outputs, void *stream) {
  if (const int code = prepare_run(net, sizes, inputs, outputs)) return code;
  for (int k = 0; k < INPUTS + OUTPUTS; ++k) {
    const bool in = k < INPUTS;
    void *data = in ? inputs[k].data : outputs[k - INPUTS].data;
    const int slot = in ? input_shapes[k].slot : output_shapes[k - INPUTS].slot;
    if ((uintptr_t)data % ALIGNED)
      return fail(@NAME@_ARGUMENT, "%s does not begin at a multiple of 16 bytes", (in ? input_tensors[k] : output_tensors[k - INPUTS]).name);
    if (slot >= 0) net->slots[slot] = data;
  }
  if (const int error = @NAME@_run_0(net->sizes, net->slots, stream)) return refused(error, "a kernel");
  return @NAME@_OK;
}

int @NAME@_run(@NAME@_net *net, const int64_t *sizes, const @NAME@_buffer *inputs, const @NAME@_buffer *outputs) {
  @NAME@_buffer on_device[INPUTS + OUTPUTS + 1];
  int64_t length = 0;
  float outside[LOOKUPS + 1] = {0};
  if (const int code = prepare_run(net, sizes, inputs, outputs)) return code;
  for (int pass = 0; pass < 2; ++pass) {
    length = 0;
    for (int k = 0; k < INPUTS + OUTPUTS; ++k) {
      on_device[k].bytes = k < INPUTS ? inputs[k].bytes : outputs[k - INPUTS].bytes;
      on_device[k].data = pass ? net->ends + length : NULL;
      length += arena_aligned((int64_t)on_device[k].bytes);
    }
    if (!pass)
      if (const int code = grow(&net->ends, &net->ends_room, length + ARENA_ALIGNMENT)) return code;
  }
  for (int k = 0; k < INPUTS; ++k)
    if (const cudaError_t error = cudaMemcpyAsync(on_device[k].data, inputs[k].data, inputs[k].bytes, cudaMemcpyHostToDevice, net->stream))
      return refused(error, input_tensors[k].name);
  if (const int code = @NAME@_run_device(net, sizes, on_device, on_device + INPUTS, net->stream)) return code;
  for (int k = 0; k < OUTPUTS; ++k)
    if (const cudaError_t error = cudaMemcpyAsync(outputs[k].data, on_device[INPUTS + k].data, outputs[k].bytes, cudaMemcpyDeviceToHost, net->stream))
      return refused(error, output_tensors[k].name);
  for (int k = 0; k < LOOKUPS; ++k)
    if (outside_slots[k] >= 0)
      if (const cudaError_t error = cudaMemcpyAsync(&outside[k], net->slots[outside_slots[k]], sizeof outside[k], cudaMemcpyDeviceToHost, net->stream))
        return refused(error, "an index");
  if (const cudaError_t error = cudaStreamSynchronize(net->stream)) return refused(error, "the run");
  for (int k = 0; k < LOOKUPS; ++k)
    if (outside[k] > 0.0f) return fail(@NAME@_ARGUMENT, "%s", lookups[k]);
  return @NAME@_OK;
}

void @NAME@_destroy(@NAME@_net *net) {
  if (!net) return;
  cudaFree(net->weights);
  cudaFree(net->arena);
  cudaFree(net->ends);
  cudaFree(net->outside);
  if (net->stream) cudaStreamDestroy(net->stream);
  free(net);
}

