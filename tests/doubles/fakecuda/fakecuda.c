/* A libcuda of plain memory: enough of the driver for the real pycuda and cuda-python to allocate, copy, wait, launch
 * a kernel and record graphs. Code is looked at (a cubin must be of this GPU and have the kernel's name), and a launch
 * is done by whoever set fake_launch: the tests, with the host's build of the same source.
 *
 * Every copy is checked against the live allocations, fresh memory is full of 0xCB, and a call without a current
 * context fails. What is to go wrong is set by the tests through the variables named fake_*. No source or binary of
 * NVIDIA's is in here; the signatures are those of the public driver interface. What is not here is refused by
 * functions that fakecuda/__init__.py generates for the names a library needs.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long address;
enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, BAD_DEVICE = 101, NO_CONTEXT = 201, ILLEGAL = 700 };
enum { DEVICE, PINNED, MAPPED };

int fake_sm = 87, fake_integrated = 1, fake_no_device = 0, fake_lost = 0, fake_unrecordable = 0, fake_replays = 0;
size_t fake_total = (size_t)1 << 30;

#define MOST 4096
static struct { char *start; size_t size; int kind; } blocks[MOST];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int depth; /* of this thread's context stack */
static char context;

static int ready(void) { return fake_no_device ? NO_DEVICE : !depth ? NO_CONTEXT : fake_lost ? ILLEGAL : OK; }

static size_t taken(void) {
  size_t sum = 0;
  for (int i = 0; i < MOST; ++i)
    if (blocks[i].start && blocks[i].kind == DEVICE) sum += blocks[i].size;
  return sum;
}

/* Whether the device may touch all of it. */
int fake_owns(address at, size_t size) {
  for (int i = 0; i < MOST; ++i) {
    address start = (address)(uintptr_t)blocks[i].start;
    if (start && blocks[i].kind != PINNED && start <= at && at + size <= start + blocks[i].size) return 1;
  }
  return 0;
}

int fake_count(int on_host) {
  int count = 0;
  for (int i = 0; i < MOST; ++i) count += blocks[i].start && (blocks[i].kind != DEVICE) == on_host;
  return count;
}

int fake_depth(void) { return depth; }

size_t fake_free(void) { return fake_total - taken(); }

static int allocate(void **out, size_t size, int kind) {
  int code = ready();
  if (code) return code;
  if (!size) return INVALID;
  pthread_mutex_lock(&lock);
  code = OUT_OF_MEMORY;
  for (int i = 0; i < MOST && (kind != DEVICE || taken() + size <= fake_total); ++i)
    if (!blocks[i].start && !posix_memalign(out, 512, size)) {
      memset(*out, 0xCB, size);
      blocks[i].start = *out, blocks[i].size = size, blocks[i].kind = kind;
      code = OK;
      break;
    }
  pthread_mutex_unlock(&lock);
  return code;
}

static int release(void *start) {
  int code = ready();
  if (code) return code;
  code = INVALID;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < MOST; ++i)
    if (start && blocks[i].start == start) {
      free(start);
      blocks[i].start = NULL;
      code = OK;
    }
  pthread_mutex_unlock(&lock);
  return code;
}

/* Everything as at the start; what a test left behind is forgotten. */
void fake_reset(void) {
  memset(blocks, 0, sizeof blocks);
  fake_sm = 87, fake_integrated = 1, fake_no_device = 0, fake_lost = 0, fake_total = (size_t)1 << 30;
  fake_unrecordable = 0, fake_replays = 0;
}

/* Work on a stream is done at once, or noted for a graph while the stream is being recorded. */
enum { ARGUMENTS = 144, NAME = 64, NODES = 64 };
struct work {
  enum { COPY, LAUNCH, HOST } kind;
  void *to; const void *from; size_t size;
  char name[NAME]; unsigned shape[6]; unsigned char arguments[ARGUMENTS];
  void (*host)(void);
};
struct graph { int count; struct work nodes[NODES]; };
struct stream { struct graph *recording; };
int fake_recordings; /* streams that are being recorded */
int (*fake_launch)(const char *name, const unsigned *shape, const unsigned char *arguments);

static int do_work(struct work *work) {
  if (work->kind == COPY) memcpy(work->to, work->from, work->size);
  else if (work->kind == LAUNCH) return fake_launch ? fake_launch(work->name, work->shape, work->arguments) : 801;
  else work->host();
  return OK;
}
static int queue(struct stream *stream, struct work work) {
  if (!stream || !stream->recording) return do_work(&work);
  if (stream->recording->count == NODES) return INVALID;
  stream->recording->nodes[stream->recording->count++] = work;
  return OK;
}
int fake_is_recording(struct stream *stream) { return stream && stream->recording; }
void fake_queue(struct stream *stream, void (*host)(void)) {
  struct work work = {.kind = HOST, .host = host};
  queue(stream, work);
}

/* For the stand-in for TensorRT, which has memory of its own. */
void *fake_allocate(size_t size) {
  void *out = NULL;
  return allocate(&out, size, DEVICE) == OK ? out : NULL;
}

void fake_release(void *start) { release(start); }

int cuInit(unsigned flags) { (void)flags; return fake_no_device ? NO_DEVICE : OK; }
int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
int cuDeviceGetCount(int *count) { *count = !fake_no_device; return OK; }
int cuDeviceGet(int *device, int number) { *device = 0; return number ? BAD_DEVICE : OK; }
int cuDeviceGetName(char *name, int size, int device) { (void)device; snprintf(name, size, "Orin"); return OK; }
int cuDeviceTotalMem_v2(size_t *size, int device) { (void)device; *size = fake_total; return OK; }
int cuDeviceGetAttribute(int *value, int which, int device) {
  (void)device;
  *value = which == 75 ? fake_sm / 10 : which == 76 ? fake_sm % 10 : which == 18 ? fake_integrated : 1;
  return OK;
}
int cuGetErrorString(int code, const char **text) {
  *text = code == OUT_OF_MEMORY ? "out of memory" : code == NO_CONTEXT ? "invalid device context"
        : code == ILLEGAL ? "an illegal memory access was encountered" : code == INVALID ? "invalid argument"
        : code == NO_DEVICE ? "no CUDA-capable device is detected" : "operation not supported";
  return OK;
}
int cuGetExportTable(const void **table, const void *id) { (void)id; *table = NULL; return 500; } /* NVRTC asks */
int cuGetErrorName(int code, const char **text) { (void)code; *text = "CUDA_ERROR"; return OK; }

int cuDevicePrimaryCtxRetain(void **out, int device) { (void)device; *out = &context; return OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return OK; }
int cuCtxPushCurrent_v2(void *pushed) { (void)pushed; ++depth; return OK; }
int cuCtxPopCurrent_v2(void **out) { if (!depth) return NO_CONTEXT; --depth; if (out) *out = &context; return OK; }
int cuCtxGetCurrent(void **out) { *out = depth ? &context : NULL; return OK; }
int cuCtxGetDevice(int *device) { *device = 0; return depth ? OK : NO_CONTEXT; }
int cuCtxGetApiVersion(void *of, unsigned *version) { (void)of; *version = 13000; return OK; }
int cuCtxSynchronize(void) { return ready(); }
int cuCtxDetach(void *of) { (void)of; return OK; }

int cuMemGetInfo_v2(size_t *left, size_t *total) { *total = fake_total; *left = fake_free(); return ready(); }
int cuMemAlloc_v2(address *out, size_t size) {
  void *start = NULL;
  int code = allocate(&start, size, DEVICE);
  *out = (address)(uintptr_t)start;
  return code;
}
int cuMemFree_v2(address start) { return release((void *)(uintptr_t)start); }
int cuMemHostAlloc(void **out, size_t size, unsigned flags) { return allocate(out, size, flags & 2 ? MAPPED : PINNED); }
int cuMemFreeHost(void *start) { return release(start); }
int cuMemHostGetDevicePointer_v2(address *out, void *start, unsigned flags) {
  (void)flags;
  *out = (address)(uintptr_t)start;
  return fake_owns(*out, 1) ? ready() : INVALID;
}
int cuMemcpyHtoDAsync_v2(address to, const void *from, size_t size, void *stream) {
  int code = ready();
  struct work work = {.kind = COPY, .to = (void *)(uintptr_t)to, .from = from, .size = size};
  if (!code && !fake_owns(to, size)) code = INVALID;
  return code ? code : queue(stream, work);
}
int cuMemcpyDtoHAsync_v2(void *to, address from, size_t size, void *stream) {
  int code = ready();
  struct work work = {.kind = COPY, .to = to, .from = (void *)(uintptr_t)from, .size = size};
  if (!code && !fake_owns(from, size)) code = INVALID;
  return code ? code : queue(stream, work);
}
int cuMemcpyDtoDAsync_v2(address to, address from, size_t size, void *stream) {
  int code = ready();
  struct work work = {.kind = COPY, .to = (void *)(uintptr_t)to, .from = (void *)(uintptr_t)from, .size = size};
  if (!code && !(fake_owns(to, size) && fake_owns(from, size))) code = INVALID;
  return code ? code : queue(stream, work);
}
int cuStreamCreate(void **out, unsigned flags) {
  (void)flags;
  *out = calloc(1, sizeof(struct stream));
  return ready();
}
int cuStreamDestroy_v2(void *stream) { free(stream); return ready(); }
int cuStreamSynchronize(void *stream) { return fake_is_recording(stream) ? 900 : ready(); }

int cuStreamBeginCapture_v2(void *stream, int mode) {
  (void)mode;
  int code = ready();
  if (code) return code;
  ((struct stream *)stream)->recording = calloc(1, sizeof(struct graph));
  ++fake_recordings;
  return OK;
}
int cuStreamEndCapture(void *stream, void **out) {
  *out = ((struct stream *)stream)->recording;
  ((struct stream *)stream)->recording = NULL;
  --fake_recordings;
  return fake_unrecordable ? 900 : ready();
}
int cuGraphInstantiateWithFlags(void **out, void *from, uint64_t flags) {
  (void)flags;
  *out = malloc(sizeof(struct graph));
  memcpy(*out, from, sizeof(struct graph));
  return ready();
}
int cuGraphDestroy(void *graph) { free(graph); return ready(); }
int cuGraphExecDestroy(void *graph) { free(graph); return ready(); }
int cuGraphLaunch(void *graph, void *stream) {
  (void)stream;
  ++fake_replays;
  int code = ready();
  for (int i = 0; !code && i < ((struct graph *)graph)->count; ++i) code = do_work(&((struct graph *)graph)->nodes[i]);
  return code;
}

/* Code: a real cubin, whose ELF flags name its SM, or the tests' own note. Only what can be looked up is kept. */
struct module { size_t size; unsigned char image[]; };
static size_t elf_size(const unsigned char *image) {
  uint64_t offset; uint16_t size, count;
  memcpy(&offset, image + 40, 8), memcpy(&size, image + 58, 2), memcpy(&count, image + 60, 2);
  return offset + (size_t)size * count;
}
int cuModuleLoadDataEx(void **out, const void *image, unsigned count, void *options, void *values) {
  (void)count, (void)options, (void)values;
  const unsigned char *bytes = image;
  char wanted[16];
  size_t size;
  if (!memcmp(bytes, "\177ELF", 4)) {
    unsigned sm = (unsigned)fake_sm; /* in the lowest byte of the flags, since CUDA 13 in the next one */
    if (bytes[48] != sm && bytes[49] != sm) return 209;
    size = elf_size(bytes);
  } else {
    snprintf(wanted, sizeof wanted, " sm=%d ", fake_sm);
    if (!strstr(image, wanted)) return 209;
    size = strlen(image) + 1;
  }
  struct module *module = malloc(sizeof *module + size);
  module->size = size;
  memcpy(module->image, image, size);
  *out = module;
  return ready();
}
int cuModuleLoadData(void **out, const void *image) { return cuModuleLoadDataEx(out, image, 0, NULL, NULL); }
int cuModuleUnload(void *module) { free(module); return OK; }
int cuModuleGetFunction(void **out, void *of, const char *name) {
  struct module *module = of;
  int is_note = memcmp(module->image, "\177ELF", 4);
  if (!is_note && !memmem(module->image, module->size, name, strlen(name))) return 500;
  *out = strdup(name);
  return ready();
}
int cuFuncGetAttribute(int *value, int which, void *of) { (void)which, (void)of; *value = 0; return OK; }
int cuFuncSetBlockShape(void *of, int x, int y, int z) { (void)of, (void)x, (void)y, (void)z; return OK; }
int cuFuncSetSharedSize(void *of, unsigned size) { (void)of, (void)size; return OK; }
int cuLaunchKernel(void *name, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **extra) {
  static const size_t sizes[] = {8, 8, 8, 108, 8}, places[] = {0, 8, 16, 24, 136}; /* of prepare.cu */
  struct work work = {.kind = LAUNCH, .shape = {gx, gy, gz, bx, by, bz}};
  (void)shared;
  snprintf(work.name, NAME, "%s", (const char *)name);
  if (parameters)
    for (int i = 0; i < 5; ++i) memcpy(work.arguments + places[i], parameters[i], sizes[i]);
  for (int i = 0; extra && extra[i]; i += 2) {
    if (extra[i] == (void *)1) memcpy(work.arguments, extra[i + 1], ARGUMENTS);
    if (extra[i] == (void *)2 && *(size_t *)extra[i + 1] != ARGUMENTS) return INVALID;
  }
  if (!gx || !gy || !gz || !bx || bx * by * bz > 1024) return INVALID;
  int code = ready();
  return code ? code : queue(stream, work);
}

/* cuda-python asks for everything by its plain name; the newest variant here answers, or a refusal. */
static int refuse(void) { return 801; }
int cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t flags, int *status) {
  (void)version, (void)flags;
  char newest[128];
  snprintf(newest, sizeof newest, "%s_v2", name);
  *out = dlsym(RTLD_DEFAULT, newest);
  if (!*out) *out = dlsym(RTLD_DEFAULT, name);
  if (!*out) *out = (void *)refuse;
  if (status) *status = 0;
  return OK;
}
