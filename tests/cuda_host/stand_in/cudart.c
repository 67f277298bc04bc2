/* A CUDA runtime without a GPU: device memory is the host's, kernels do nothing, and a journal says what was asked for.

   What a library does on the host around its kernels runs for real: placing nodes, choosing kernels, memory, recording of
   CUDA graphs. Calls that CUDA forbids while a stream is recorded fail here too. The journal has a line for each of them:

     launch NAME | library FUNCTION | stream OF A LIBRARY | copy KIND | host function | begin | end | replay | forbidden CALL
*/
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* --- the journal, and what a test asks through ctypes --- */

static char *journal;
static size_t journal_size, journal_room;

void stand_in_say(const char *format, ...) {
    char line[4096];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (length >= (int)sizeof line) length = sizeof line - 1;
    pthread_mutex_lock(&lock);
    if (journal_size + length + 2 > journal_room) {
        journal_room = 2 * (journal_room + length + 2);
        journal = realloc(journal, journal_room);
    }
    memcpy(journal + journal_size, line, length);
    journal_size += length;
    journal[journal_size++] = '\n';
    journal[journal_size] = 0;
    pthread_mutex_unlock(&lock);
}

const char *stand_in_journal(void) { return journal ? journal : ""; }
void stand_in_forget(void) { journal_size = 0; if (journal) journal[0] = 0; }

/* --- memory: each block has its size in front of it --- */

#define HEADER 512
static size_t held, room = (size_t)80 << 30;

size_t stand_in_held(void) { return held; }
void stand_in_limit(size_t bytes) { room = bytes; }

/* One thread records at a time. In the global mode what may block the device is forbidden to all threads meanwhile. */
static int capturing;
static enum cudaStreamCaptureMode capture_mode;
static pthread_t recorder;
static cudaStream_t recorded_stream;
static unsigned pause_ms;

void stand_in_record_slowly(unsigned ms) { pause_ms = ms; }

static int recording_here(void) { return capturing && pthread_equal(recorder, pthread_self()); }

static cudaError_t forbidden_while_recording(const char *call) {
    if (!recording_here() && !(capturing && capture_mode == cudaStreamCaptureModeGlobal)) return cudaSuccess;
    stand_in_say("forbidden %s", call);
    return cudaErrorStreamCaptureUnsupported;
}

static cudaError_t take(void **address, size_t bytes) {
    if (held + bytes > room) return cudaErrorMemoryAllocation;
    char *block = aligned_alloc(HEADER, HEADER + (bytes + HEADER - 1) / HEADER * HEADER);
    if (!block) return cudaErrorMemoryAllocation;
    *(size_t *)block = bytes;
    __sync_fetch_and_add(&held, bytes);
    *address = block + HEADER;
    return cudaSuccess;
}

static cudaError_t give(void *address) {
    if (!address) return cudaSuccess;
    char *block = (char *)address - HEADER;
    __sync_fetch_and_sub(&held, *(size_t *)block);
    free(block);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t n) {
    cudaError_t e = forbidden_while_recording("cudaMalloc");
    return e ? e : take(p, n);
}
cudaError_t cudaFree(void *p) {
    cudaError_t e = forbidden_while_recording("cudaFree");
    return e ? e : give(p);
}
cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) { return take(p, n); }
cudaError_t cudaMallocFromPoolAsync(void **p, size_t n, cudaMemPool_t m, cudaStream_t s) { return take(p, n); }
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return give(p); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) {
    cudaError_t e = forbidden_while_recording("cudaHostAlloc");
    if (e) return e;
    *p = aligned_alloc(4096, (n + 4095) / 4096 * 4096);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaMallocHost(void **p, size_t n) { return cudaHostAlloc(p, n, 0); }
cudaError_t cudaFreeHost(void *p) { free(p); return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) { *total = room; *free_bytes = room - held; return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    memset(a, 0, sizeof *a);
    a->type = cudaMemoryTypeDevice;
    return cudaSuccess;
}

static const char *const KINDS[] = {"host to host", "host to device", "device to host", "device to device", "default"};

cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) {
    cudaError_t e = forbidden_while_recording("cudaMemcpy");
    if (!e) memmove(to, from, n);
    return e;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t s) {
    stand_in_say("copy %s", KINDS[kind]);
    if (!recording_here()) memmove(to, from, n);
    return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t tp, const void *from, size_t fp, size_t w, size_t h,
                              enum cudaMemcpyKind kind, cudaStream_t s) {
    stand_in_say("copy %s", KINDS[kind]);
    return cudaSuccess;
}
cudaError_t cudaMemcpyFromSymbol(void *to, const void *symbol, size_t n, size_t offset, enum cudaMemcpyKind kind) {
    memset(to, 0, n);
    return cudaSuccess;
}
cudaError_t cudaMemset(void *p, int value, size_t n) { memset(p, value, n); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s) {
    if (!recording_here()) memset(p, value, n);
    return cudaSuccess;
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *p) { *pool = malloc(8); return cudaSuccess; }
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) { free(pool); return cudaSuccess; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr a, void *value) {
    *(unsigned long long *)value = 0;
    return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr a, void *value) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t n) { return cudaSuccess; }

/* --- kernels: known by the names that the library's own start registers --- */

typedef struct { const void *function; const char *name; } Kernel;
static Kernel *kernels;
static size_t kernel_count, kernel_room;

static const char *name_of(const void *function) {
    for (size_t i = 0; i < kernel_count; i++)
        if (kernels[i].function == function) return kernels[i].name;
    return "?";
}

void **__cudaRegisterFatBinary(void *binary) { return malloc(8); }
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int ext, size_t n, int c, int global) {}
void __cudaRegisterFunction(void **handle, const char *function, char *device, const char *name, int threads, void *tid,
                            void *bid, void *block, void *grid, int *warp) {
    if (kernel_count == kernel_room) {
        kernel_room = kernel_room ? 2 * kernel_room : 65536;
        kernels = realloc(kernels, kernel_room * sizeof *kernels);
    }
    kernels[kernel_count++] = (Kernel){function, name};
}

static __thread struct { dim3 grid, block; size_t shared; cudaStream_t stream; } launch_as;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
    launch_as.grid = grid, launch_as.block = block, launch_as.shared = shared, launch_as.stream = stream;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = launch_as.grid, *block = launch_as.block, *shared = launch_as.shared;
    *(cudaStream_t *)stream = launch_as.stream;
    return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) { *kernel = (cudaKernel_t)function; return cudaSuccess; }

static cudaError_t launched(const void *function, cudaStream_t stream) {
    if (recording_here() && stream != recorded_stream) stand_in_say("forbidden launch on a stream that is not recorded");
    stand_in_say("launch %s", name_of(function));
    return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **a, size_t n, cudaStream_t s) { return launched(k, s); }
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t n, cudaStream_t s) { return launched(f, s); }
cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 g, dim3 b, void **a, size_t n, cudaStream_t s) { return launched(f, s); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { return launched(f, c->stream); }
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t work, void *data) {
    if (!recording_here()) work(data);
    else stand_in_say("host function");
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024, a->numRegs = 32, a->binaryVersion = a->ptxVersion = 90;
    a->maxDynamicSharedSizeBytes = 232448;
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int value) { return cudaSuccess; }
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t k, enum cudaFuncAttribute a, int value, int device) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f, int threads, size_t n, unsigned flags) {
    *blocks = 2;
    return cudaSuccess;
}
cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code, enum cudaJitOption *a, void **b, unsigned c,
                                enum cudaLibraryOption *d, void **e, unsigned f) {
    *library = malloc(8);
    return cudaSuccess;
}
cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name) { *kernel = (cudaKernel_t)name; return cudaSuccess; }
cudaError_t cudaLibraryUnload(cudaLibrary_t library) { free(library); return cudaSuccess; }

/* --- streams, events and recorded graphs: all work is done at once, so there is nothing to wait for --- */

cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = malloc(16); return cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { return cudaStreamCreate(s); }
cudaError_t cudaStreamDestroy(cudaStream_t s) { free(s); return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return forbidden_while_recording("cudaStreamSynchronize"); }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) { return cudaSuccess; }
/* "It is invalid to synchronize … a broader handle which encompasses an active stream capture" (the CUDA C++ Programming
   Guide), from whatever thread. */
cudaError_t cudaDeviceSynchronize(void) {
    if (!capturing) return cudaSuccess;
    stand_in_say("forbidden cudaDeviceSynchronize");
    return cudaErrorStreamCaptureUnsupported;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = malloc(16); return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { return cudaEventCreate(e); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return forbidden_while_recording("cudaEventSynchronize"); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) { *ms = 1; return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
    capture_mode = mode, recorder = pthread_self(), recorded_stream = s, capturing = 1;
    stand_in_say("begin");
    usleep(1000 * pause_ms);
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
    capturing = 0;
    *graph = malloc(8);
    stand_in_say("end");
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    *status = recording_here() ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) { *exec = malloc(8); return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) { stand_in_say("replay"); return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { free(graph); return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { free(exec); return cudaSuccess; }

/* --- the device: one, with the figures of an H100 or H200 that kernels are chosen by --- */

cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "stand-in, sm_90");
    p->major = 9, p->minor = 0, p->multiProcessorCount = 132, p->warpSize = 32, p->totalGlobalMem = room;
    p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048, p->regsPerBlock = 65536;
    p->sharedMemPerBlock = 49152, p->sharedMemPerBlockOptin = 232448, p->sharedMemPerMultiprocessor = 233472;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->l2CacheSize = 50 << 20, p->unifiedAddressing = p->canMapHostMemory = 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
    default: *value = 1;
    }
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
static int nothing(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **entry, unsigned version, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *found) {
    *entry = nothing;
    if (found) *found = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
const char *cudaGetErrorName(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : e ? "cudaErrorOther" : "cudaSuccess"; }
const char *cudaGetErrorString(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "out of memory" : e ? "an error" : "no error"; }
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
cudaError_t cudaPeekAtLastError(void) { return cudaSuccess; }
