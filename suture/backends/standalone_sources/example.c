/* Loads the weights, fills the inputs, runs the network and prints the first numbers of what comes out:  @NAME@_example [weights.safetensors] */
#include <stdio.h>
#include <stdlib.h>

#include "@NAME@.h"

static int failed(void) {
  fprintf(stderr, "@NAME@: %s\n", @NAME@_error());
  return 1;
}

int main(int count, char **arguments) {
  const int64_t sizes[] = {@EXAMPLE_SIZES@};@EXAMPLE_COMMENT@
  @NAME@_buffer inputs[@NAME@_INPUTS + 1], outputs[@NAME@_OUTPUTS + 1];
  @NAME@_net *net;

  if (@NAME@_create(&net, count > 1 ? arguments[1] : "weights.safetensors")) return failed();
  for (int k = 0; k < @NAME@_INPUTS; ++k) {
    inputs[k].bytes = (size_t)@NAME@_input_bytes(k, sizes);
    inputs[k].data = calloc(inputs[k].bytes + 1, 1); /* whole numbers stay zero, which every table can be looked up at */
    if (!inputs[k].data) return 1;
    float *numbers = inputs[k].data;
    if (@NAME@_input(k)->type[0] == 'F' && @NAME@_input(k)->element == sizeof(float))
      for (size_t n = 0; n < inputs[k].bytes / sizeof(float); ++n) numbers[n] = (float)(n % 17) / 8.0f - 1.0f;
  }
  for (int k = 0; k < @NAME@_OUTPUTS; ++k) {
    outputs[k].bytes = (size_t)@NAME@_output_bytes(k, sizes);
    outputs[k].data = calloc(outputs[k].bytes + 1, 1);
    if (!outputs[k].data) return 1;
  }
  if (@NAME@_run(net, sizes, inputs, outputs)) return failed();
  for (int k = 0; k < @NAME@_OUTPUTS; ++k) {
    const @NAME@_tensor *tensor = @NAME@_output(k);
    printf("%s: %zu bytes of %s", tensor->name, outputs[k].bytes, tensor->type);
    for (size_t n = 0; tensor->type[0] == 'F' && tensor->element == sizeof(float) && n < 8 && n < outputs[k].bytes / sizeof(float); ++n)
      printf(" %g", ((float *)outputs[k].data)[n]);
    printf("\n");
  }
  for (int k = 0; k < @NAME@_INPUTS; ++k) free(inputs[k].data);
  for (int k = 0; k < @NAME@_OUTPUTS; ++k) free(outputs[k].data);
  @NAME@_destroy(net);
  return 0;
}
