/* A libcuda of plain memory: enough of the driver for the real pycuda and cuda-python to allocate, copy and wait.
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

int fake_sm = 87, fake_integrated = 1, fake_no_device = 0, fake_lost = 0;
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
  (void)stream;
  int code = ready();
  if (!code && !fake_owns(to, size)) code = INVALID;
  if (!code) memcpy((void *)(uintptr_t)to, from, size);
  return code;
}
int cuMemcpyDtoHAsync_v2(void *to, address from, size_t size, void *stream) {
  (void)stream;
  int code = ready();
  if (!code && !fake_owns(from, size)) code = INVALID;
  if (!code) memcpy(to, (void *)(uintptr_t)from, size);
  return code;
}
int cuStreamCreate(void **out, unsigned flags) { (void)flags; *out = malloc(16); return ready(); }
int cuStreamDestroy_v2(void *stream) { free(stream); return ready(); }
int cuStreamSynchronize(void *stream) { (void)stream; return ready(); }

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
