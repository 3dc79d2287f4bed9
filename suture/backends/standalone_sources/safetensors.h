/* A reader of safetensors files: eight bytes of length, a header in JSON, the tensors' bytes one after the other.

   Nothing in a file is believed: every length, number and offset is checked against the file's size before it is used, a name may stand only
   once, and the tensors must cover the data without a gap or an overlap. All functions are static: one file includes this and owns what it makes.
   C99, and C++ as well. */
#ifndef SUTURE_SAFETENSORS_H
#define SUTURE_SAFETENSORS_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ST_RANK 16                        /* the most dimensions of a tensor */
#define ST_HEADER (100u * 1000u * 1000u)  /* the longest header, as the format has it */

typedef struct {
  const char *name;
  const char *dtype; /* "F32" and so on */
  int rank;
  int64_t shape[ST_RANK];
  uint64_t begin, end; /* its bytes in the data */
} st_tensor;

typedef struct {
  FILE *stream;
  char *header; /* names point into it */
  uint64_t data, size; /* where the data begin in the file, and how long they are */
  st_tensor *tensors; /* by name */
  size_t count;
  char error[256]; /* why something failed */
} st_file;

/* Whether a file could be opened and its header makes sense; if not, `error` says why, and nothing is kept open. */
static int st_open(st_file *it, const char *path);
/* The tensor of a name, or NULL. */
static const st_tensor *st_find(const st_file *it, const char *name);
/* Read a tensor's bytes, end - begin of them. */
static int st_read(st_file *it, const st_tensor *tensor, void *into);
/* Let everything go. */
static void st_close(st_file *it);

/* ------------------------------------------------------------------------------------------------------------------------------------ */

static int st_fail(st_file *it, const char *format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(it->error, sizeof it->error, format, values);
  va_end(values);
  return 0;
}

/* The text that is left to read; `failed` remembers the first thing that was wrong. */
typedef struct {
  st_file *file;
  char *at, *end;
} st_text;

static int st_wrong(st_text *text, const char *what) {
  long place = (long)(text->at - text->file->header);
  return st_fail(text->file, "the header is no header of tensors: %s at byte %ld", what, place);
}

static char st_next(st_text *text) { /* the next sign that is no blank; 0 at the end */
  while (text->at < text->end && (*text->at == ' ' || *text->at == '\t' || *text->at == '\n' || *text->at == '\r')) ++text->at;
  return (char)(text->at < text->end ? *text->at : 0);
}

static int st_accept(st_text *text, char sign) {
  if (st_next(text) != sign) return 0;
  ++text->at;
  return 1;
}

static int st_expect(st_text *text, char sign) {
  char what[] = "no ' '";
  what[4] = sign;
  return st_accept(text, sign) || st_wrong(text, what);
}

static int st_hexadecimal(st_text *text, unsigned *code) {
  *code = 0;
  if (text->end - text->at < 4) return st_wrong(text, "a cut escape");
  for (int k = 0; k < 4; ++k) {
    char c = *text->at++;
    unsigned digit;
    if (c >= '0' && c <= '9') digit = (unsigned)(c - '0');
    else if (c >= 'a' && c <= 'f') digit = (unsigned)(c - 'a' + 10);
    else if (c >= 'A' && c <= 'F') digit = (unsigned)(c - 'A' + 10);
    else return st_wrong(text, "an escape that is no number");
    *code = *code * 16 + digit;
  }
  return 1;
}

/* The character of \uXXXX, of two such for the higher planes, as UTF-8; no longer than it was written. */
static int st_unicode(st_text *text, char **to) {
  unsigned code, low;
  unsigned char *out = (unsigned char *)*to;
  if (!st_hexadecimal(text, &code)) return 0;
  if (code >= 0xd800 && code <= 0xdbff) {
    if (text->end - text->at < 6 || text->at[0] != '\\' || text->at[1] != 'u') return st_wrong(text, "half a character");
    text->at += 2;
    if (!st_hexadecimal(text, &low)) return 0;
    if (low < 0xdc00 || low > 0xdfff) return st_wrong(text, "half a character");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  } else if (code >= 0xdc00 && code <= 0xdfff) return st_wrong(text, "half a character");
  if (code == 0) return st_wrong(text, "a zero in a text");
  if (code < 0x80) *out++ = (unsigned char)code;
  else if (code < 0x800) { *out++ = (unsigned char)(0xc0 | code >> 6); *out++ = (unsigned char)(0x80 | (code & 63)); }
  else if (code < 0x10000) {
    *out++ = (unsigned char)(0xe0 | code >> 12);
    *out++ = (unsigned char)(0x80 | (code >> 6 & 63));
    *out++ = (unsigned char)(0x80 | (code & 63));
  } else {
    *out++ = (unsigned char)(0xf0 | code >> 18);
    *out++ = (unsigned char)(0x80 | (code >> 12 & 63));
    *out++ = (unsigned char)(0x80 | (code >> 6 & 63));
    *out++ = (unsigned char)(0x80 | (code & 63));
  }
  *to = (char *)out;
  return 1;
}

/* A text in quotes, its escapes resolved where it stands, ended by a zero. */
static int st_string(st_text *text, char **found) {
  static const char escapes[] = "\"\"\\\\//b\bf\fn\nr\rt\t"; /* as written, and what it means */
  if (!st_expect(text, '"')) return 0;
  char *to = *found = text->at;
  while (text->at < text->end) {
    char c = *text->at++;
    if (c == '"') {
      *to = 0;
      return 1;
    }
    if ((unsigned char)c < 32) return st_wrong(text, "a control character in a text");
    if (c != '\\') {
      *to++ = c;
      continue;
    }
    if (text->at == text->end) break;
    c = *text->at++;
    if (c == 'u') {
      if (!st_unicode(text, &to)) return 0;
      continue;
    }
    const char *meant = NULL;
    for (const char *pair = escapes; *pair; pair += 2)
      if (pair[0] == c) meant = pair + 1;
    if (!meant) return st_wrong(text, "an unknown escape");
    *to++ = *meant;
  }
  return st_wrong(text, "a text without an end");
}

/* A whole number, not negative, at most 2^63 - 1. */
static int st_number(st_text *text, uint64_t *found) {
  uint64_t value = 0;
  char first = st_next(text);
  if (first < '0' || first > '9') return st_wrong(text, "no whole number");
  while (text->at < text->end && *text->at >= '0' && *text->at <= '9') {
    unsigned digit = (unsigned)(*text->at - '0');
    if (value > ((uint64_t)INT64_MAX - digit) / 10) return st_wrong(text, "a number that is too large");
    value = value * 10 + digit;
    ++text->at;
    if (first == '0' && value) return st_wrong(text, "a number that begins with a zero");
  }
  *found = value;
  return 1;
}

/* The bits of an element; 0 if there is no such type. */
static unsigned st_bits(const char *dtype) {
  static const struct { const char *name; unsigned bits; } types[] = {
    {"BOOL", 8}, {"U8", 8}, {"I8", 8}, {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"I16", 16}, {"U16", 16}, {"F16", 16}, {"BF16", 16}, {"I32", 32},
    {"U32", 32}, {"F32", 32}, {"I64", 64}, {"U64", 64}, {"F64", 64}, {"C64", 64}};
  for (size_t k = 0; k < sizeof types / sizeof *types; ++k)
    if (!strcmp(types[k].name, dtype)) return types[k].bits;
  return 0;
}

static int st_shape(st_text *text, st_tensor *tensor) {
  uint64_t size;
  if (!st_expect(text, '[')) return 0;
  tensor->rank = 0;
  if (st_accept(text, ']')) return 1;
  do {
    if (tensor->rank == ST_RANK) return st_wrong(text, "too many dimensions");
    if (!st_number(text, &size)) return 0;
    tensor->shape[tensor->rank++] = (int64_t)size;
  } while (st_accept(text, ','));
  return st_expect(text, ']');
}

static int st_offsets(st_text *text, st_tensor *tensor) {
  return st_expect(text, '[') && st_number(text, &tensor->begin) && st_expect(text, ',') && st_number(text, &tensor->end) && st_expect(text, ']');
}

/* {"dtype": ..., "shape": ..., "data_offsets": ...}, each once. */
static int st_entry(st_text *text, st_tensor *tensor) {
  unsigned seen = 0;
  char *key, *dtype;
  if (!st_expect(text, '{')) return 0;
  do {
    if (!st_string(text, &key) || !st_expect(text, ':')) return 0;
    unsigned which = !strcmp(key, "dtype") ? 1 : !strcmp(key, "shape") ? 2 : !strcmp(key, "data_offsets") ? 4 : 0;
    if (!which) return st_wrong(text, "a tensor with an unknown field");
    if (seen & which) return st_wrong(text, "a tensor with a field given twice");
    seen |= which;
    if (which == 1) {
      if (!st_string(text, &dtype)) return 0;
      tensor->dtype = dtype;
    } else if (!(which == 2 ? st_shape(text, tensor) : st_offsets(text, tensor))) return 0;
  } while (st_accept(text, ','));
  if (!st_expect(text, '}')) return 0;
  return seen == 7 || st_wrong(text, "a tensor without its type, shape or place");
}

/* Whether type, shape and place agree, and lie in the data. */
static int st_consistent(st_file *it, const st_tensor *tensor) {
  uint64_t bytes = st_bits(tensor->dtype) / 8;
  int empty = 0;
  if (!bytes) return st_fail(it, "the tensor %.60s has the type %.20s, which is none", tensor->name, tensor->dtype);
  for (int k = 0; k < tensor->rank; ++k) empty |= tensor->shape[k] == 0;
  for (int k = 0; k < tensor->rank && !empty; ++k) {
    if (bytes > (uint64_t)INT64_MAX / (uint64_t)tensor->shape[k]) return st_fail(it, "the tensor %.60s is too large", tensor->name);
    bytes *= (uint64_t)tensor->shape[k];
  }
  if (empty) bytes = 0;
  if (tensor->begin > tensor->end || tensor->end > it->size) return st_fail(it, "the tensor %.60s lies outside of the file", tensor->name);
  if (tensor->end - tensor->begin != bytes) return st_fail(it, "the tensor %.60s has another size than its shape says", tensor->name);
  return 1;
}

static int st_by_name(const void *a, const void *b) { return strcmp(((const st_tensor *)a)->name, ((const st_tensor *)b)->name); }

static int st_by_place(const void *a, const void *b) {
  const st_tensor *x = (const st_tensor *)a, *y = (const st_tensor *)b;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  return x->end < y->end ? -1 : x->end > y->end;
}

static int st_metadata(st_text *text) { /* texts by name, which nobody here reads */
  char *key, *value;
  if (!st_expect(text, '{')) return 0;
  if (st_accept(text, '}')) return 1;
  do {
    if (!st_string(text, &key) || !st_expect(text, ':') || !st_string(text, &value)) return 0;
  } while (st_accept(text, ','));
  return st_expect(text, '}');
}

static int st_tensors(st_text *text) {
  st_file *it = text->file;
  size_t room = 0;
  int described = 0;
  if (!st_expect(text, '{')) return 0;
  if (!st_accept(text, '}')) {
    do {
      char *name;
      if (!st_string(text, &name) || !st_expect(text, ':')) return 0;
      if (!strcmp(name, "__metadata__")) {
        if (described++) return st_wrong(text, "metadata given twice");
        if (!st_metadata(text)) return 0;
        continue;
      }
      if (it->count == room) { /* an entry takes dozens of bytes, so that the header's length bounds this */
        room = room ? 2 * room : 64;
        st_tensor *grown = (st_tensor *)realloc(it->tensors, room * sizeof *grown);
        if (!grown) return st_fail(it, "there is no memory for the header");
        it->tensors = grown;
      }
      st_tensor *tensor = &it->tensors[it->count];
      memset(tensor, 0, sizeof *tensor);
      tensor->name = name;
      if (!st_entry(text, tensor) || !st_consistent(it, tensor)) return 0;
      ++it->count;
    } while (st_accept(text, ','));
    if (!st_expect(text, '}')) return 0;
  }
  if (st_next(text) || text->at != text->end) return st_wrong(text, "something behind the end");
  return 1;
}

static int st_whole(st_file *it) { /* the data are covered once, and every name is there once */
  uint64_t reached = 0;
  if (it->count) qsort(it->tensors, it->count, sizeof *it->tensors, st_by_place);
  for (size_t k = 0; k < it->count; ++k) {
    if (it->tensors[k].begin != reached) return st_fail(it, "the tensor %.60s leaves a gap or overlaps another", it->tensors[k].name);
    reached = it->tensors[k].end;
  }
  if (reached != it->size) return st_fail(it, "the file is longer than its tensors");
  if (it->count) qsort(it->tensors, it->count, sizeof *it->tensors, st_by_name);
  for (size_t k = 1; k < it->count; ++k)
    if (!st_by_name(&it->tensors[k - 1], &it->tensors[k])) return st_fail(it, "the tensor %.60s is there twice", it->tensors[k].name);
  return 1;
}

/* Whether bytes are UTF-8: no stray or missing parts, nothing written longer than it need be, no halves of characters. */
static int st_is_utf8(const char *text, size_t length) {
  const unsigned char *at = (const unsigned char *)text, *end = at + length;
  while (at < end) {
    const unsigned first = *at++;
    const int more = first < 0x80 ? 0 : first >= 0xc2 && first < 0xe0 ? 1 : first >= 0xe0 && first < 0xf0 ? 2 : first >= 0xf0 && first < 0xf5 ? 3 : -1;
    if (more < 0 || end - at < more) return 0;
    if ((first == 0xe0 && *at < 0xa0) || (first == 0xed && *at > 0x9f) || (first == 0xf0 && *at < 0x90) || (first == 0xf4 && *at > 0x8f)) return 0;
    for (int k = 0; k < more; ++k)
      if ((*at++ & 0xc0) != 0x80) return 0;
  }
  return 1;
}

static int st_begin(st_file *it) {
  unsigned char length[8];
  uint64_t header = 0;
  long long whole;
  if (fseeko(it->stream, 0, SEEK_END) || (whole = (long long)ftello(it->stream)) < 0 || fseeko(it->stream, 0, SEEK_SET))
    return st_fail(it, "the file has no length");
  if (whole < 8 || fread(length, 1, 8, it->stream) != 8) return st_fail(it, "the file is shorter than the length of its header");
  for (int k = 7; k >= 0; --k) header = header << 8 | length[k];
  if (header > ST_HEADER || header > (uint64_t)whole - 8) return st_fail(it, "the header is longer than the file");
  it->data = 8 + header;
  it->size = (uint64_t)whole - it->data;
  it->header = (char *)malloc((size_t)header + 1);
  if (!it->header) return st_fail(it, "there is no memory for the header");
  if (fread(it->header, 1, (size_t)header, it->stream) != header) return st_fail(it, "the file ends within its header");
  it->header[header] = 0;
  if (memchr(it->header, 0, (size_t)header)) return st_fail(it, "there is a zero in the header");
  if (!st_is_utf8(it->header, (size_t)header)) return st_fail(it, "the header is not UTF-8");
  st_text text = {it, it->header, it->header + header};
  return st_tensors(&text) && st_whole(it);
}

static int st_open(st_file *it, const char *path) {
  memset(it, 0, sizeof *it);
  it->stream = fopen(path, "rb");
  if (!it->stream) return st_fail(it, "the file cannot be opened");
  if (st_begin(it)) return 1;
  st_close(it);
  return 0;
}

static const st_tensor *st_find(const st_file *it, const char *name) {
  st_tensor wanted;
  wanted.name = name;
  return it->count ? (const st_tensor *)bsearch(&wanted, it->tensors, it->count, sizeof wanted, st_by_name) : NULL;
}

static int st_read(st_file *it, const st_tensor *tensor, void *into) {
  size_t bytes = (size_t)(tensor->end - tensor->begin);
  if (fseeko(it->stream, (off_t)(it->data + tensor->begin), SEEK_SET) || fread(into, 1, bytes, it->stream) != bytes)
    return st_fail(it, "the tensor %.60s cannot be read", tensor->name);
  return 1;
}

static void st_close(st_file *it) { /* what `error` says stays */
  if (it->stream) fclose(it->stream);
  free(it->header);
  free(it->tensors);
  it->stream = NULL;
  it->header = NULL;
  it->tensors = NULL;
  it->count = 0;
}

#endif
