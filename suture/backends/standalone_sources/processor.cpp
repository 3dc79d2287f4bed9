/* ---- on this processor ---- */

extern "C" void @NAME@_run_0(const k_i64 *k_n, void *const *k_p); /* every kernel, in order */

struct @NAME@_net {
  unsigned char *weights, *arena;
  int64_t room; /* bytes of the arena */
  bool planned; /* whether `plan` is that of `sizes` */
  int64_t sizes[SIZES + 1];
  Plan plan;
  float outside[LOOKUPS + 1];
  void *slots[SLOTS + 1];
};

namespace {

const int outside_slots[LOOKUPS + 1] = {@FLAG_SLOTS@};

int load_weights(@NAME@_net *net, const char *path) {
  int64_t offsets[WEIGHTS + 1], length;
  st_file file;
  if (!st_open(&file, path)) return fail(@NAME@_WEIGHTS, "%s: %s", path, file.error);
  int code = place_weights(file, offsets, &length);
  if (!code) {
    net->weights = (unsigned char *)aligned_alloc(ARENA_ALIGNMENT, (size_t)length + ARENA_ALIGNMENT);
    if (!net->weights) code = fail(@NAME@_MEMORY, "there is no memory for %lld bytes of weights", (long long)length);
  }
  for (int k = 0; k < WEIGHTS && !code; ++k) {
    net->slots[weights[k].slot] = net->weights + offsets[k];
    if (!st_read(&file, st_find(&file, weights[k].name), net->weights + offsets[k])) code = fail(@NAME@_WEIGHTS, "%s: %s", path, file.error);
  }
  st_close(&file);
  return code;
}

int plan_for(@NAME@_net *net, const int64_t *sizes) {
  if (net->planned && !memcmp(net->sizes, sizes, SIZES * sizeof *sizes)) return @NAME@_OK;
  net->planned = false;
  if (const int code = make_plan(sizes, &net->plan)) return code;
  if (net->plan.length > net->room) {
    free(net->arena);
    net->room = 0;
    net->arena = (unsigned char *)aligned_alloc(ARENA_ALIGNMENT, (size_t)net->plan.length);
    if (!net->arena) return fail(@NAME@_MEMORY, "there is no memory for an arena of %lld bytes", (long long)net->plan.length);
    net->room = net->plan.length;
  }
  for (int k = 0; k < VALUES; ++k) net->slots[value_shapes[k].slot] = net->arena + net->plan.offset[k];
  for (int k = 0; k < SIZES; ++k) net->sizes[k] = sizes[k];
  net->planned = true;
  return @NAME@_OK;
}

}  // namespace

int @NAME@_create(@NAME@_net **made, const char *path) {
  if (made) *made = NULL;
  if (!made || !path) return fail(@NAME@_ARGUMENT, "there is no %s", made ? "path of weights" : "place for the instance");
  @NAME@_net *net = (@NAME@_net *)calloc(1, sizeof *net);
  if (!net) return fail(@NAME@_MEMORY, "there is no memory for an instance");
  if (const int code = load_weights(net, path)) {
    @NAME@_destroy(net);
    return code;
  }
  for (int k = 0; k < LOOKUPS; ++k)
    if (outside_slots[k] >= 0) net->slots[outside_slots[k]] = &net->outside[k];
  *made = net;
  return @NAME@_OK;
}

int @NAME@_run(@NAME@_net *net, const int64_t *sizes, const @NAME@_buffer *inputs, const @NAME@_buffer *outputs) {
  static const int64_t none[1] = {0};
  if (!net || (SIZES > 0 && !sizes)) return fail(@NAME@_ARGUMENT, net ? "there are no sizes" : "there is no instance");
  if (const int code = plan_for(net, SIZES > 0 ? sizes : none)) return code;
  if (const int code = check_buffers(net->plan, inputs, outputs)) return code;
  for (int k = 0; k < INPUTS; ++k)
    if (input_shapes[k].slot >= 0) net->slots[input_shapes[k].slot] = inputs[k].data;
  for (int k = 0; k < OUTPUTS; ++k)
    if (output_shapes[k].slot >= 0) net->slots[output_shapes[k].slot] = outputs[k].data;
  @NAME@_run_0(net->sizes, net->slots);
  for (int k = 0; k < LOOKUPS; ++k)
    if (net->outside[k] > 0.0f) return fail(@NAME@_ARGUMENT, "%s", lookups[k]);
  return @NAME@_OK;
}

void @NAME@_destroy(@NAME@_net *net) {
  if (!net) return;
  free(net->weights);
  free(net->arena);
  free(net);
}

