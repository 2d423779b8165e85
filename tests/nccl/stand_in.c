// A stand-in for NVIDIA's libnccl.so.2, for tests on a machine with one GPU: its ranks meet in a
// file that all map, copy what is summed to the host, and add it in the order of ranks. It has the
// functions that rdpm uses and is slow: every call waits for the stream.
//
//   gcc -O2 -shared -fPIC -Wl,-soname,libnccl.so.2 -o libnccl.so.2 tests/nccl/stand_in.c -ldl
//
//   STAND_IN_VERSION=N     what ncclGetVersion says (23203 is 2.32.3)
//   STAND_IN_BREAKS=R:N    at rank R, from call N on nothing is summed, and the communicator has an
//                          asynchronous error, as after a link between GPUs broke
//   STAND_IN_HANGS=R:N     at rank R, call N never returns
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, CUDA_ERROR = 1, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, REMOTE_ERROR = 6 };
enum { UINT32 = 3, FLOAT32 = 7, SUM = 0, MOST_RANKS = 8 };
enum { CHUNK = 8 << 20 };  // bytes of a rank that are added at a time

typedef struct { char internal[128]; } Id;

// What the ranks share: a barrier, and a chunk of each.
typedef struct {
  atomic_int waiting;
  atomic_int round;
  char padding[4088];
  char chunks[];
} Shared;

typedef struct {
  int rank, size;
  int calls;
  atomic_int aborted, error;
  Shared* shared;
  char* sum;
  char path[128];
} Comm;

typedef int (*ToHost)(void*, uint64_t, size_t, void*);
typedef int (*ToDevice)(uint64_t, const void*, size_t, void*);
typedef int (*Wait)(void*);
static ToHost to_host;
static ToDevice to_device;
static Wait wait_for;

// The driver, which whoever calls this has loaded.
static int driver(void) {
  if (wait_for) return SUCCESS;
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  if (!library) return SYSTEM_ERROR;
  to_host = (ToHost)dlsym(library, "cuMemcpyDtoHAsync_v2");
  to_device = (ToDevice)dlsym(library, "cuMemcpyHtoDAsync_v2");
  wait_for = (Wait)dlsym(library, "cuStreamSynchronize");
  return to_host && to_device && wait_for ? SUCCESS : SYSTEM_ERROR;
}

// Whether the variable is `rank:call` with this rank and a call that has come.
static int has_come(const char* name, const Comm* comm) {
  const char* text = getenv(name);
  int rank, call;
  return text && sscanf(text, "%d:%d", &rank, &call) == 2 && rank == comm->rank && comm->calls >= call;
}

static void pause_briefly(void) {
  struct timespec time = {0, 20000};
  nanosleep(&time, NULL);
}

// All ranks have come here.
static int barrier(Comm* comm) {
  Shared* shared = comm->shared;
  int round = atomic_load(&shared->round);
  if (atomic_fetch_add(&shared->waiting, 1) + 1 == comm->size) {
    atomic_store(&shared->waiting, 0);
    atomic_fetch_add(&shared->round, 1);
    return SUCCESS;
  }
  for (int turn = 0; atomic_load(&shared->round) == round; ++turn) {
    if (atomic_load(&comm->aborted)) return SYSTEM_ERROR;
    if (turn < 1000) sched_yield();
    else pause_briefly();
  }
  return SUCCESS;
}

static size_t length(int size) { return offsetof(Shared, chunks) + (size_t)size * CHUNK; }

int ncclGetVersion(int* version) {
  const char* text = getenv("STAND_IN_VERSION");
  *version = text ? atoi(text) : 23203;
  return SUCCESS;
}

int ncclGetUniqueId(Id* id) {
  const char* folder = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  memset(id, 0, sizeof *id);
  snprintf(id->internal, sizeof id->internal, "%s/rdpm-nccl-%d-%ld", folder, getpid(), now.tv_nsec);
  return SUCCESS;
}

int ncclCommInitRank(void** made, int size, Id id, int rank) {
  int failed = driver();
  if (failed) return failed;
  if (size > MOST_RANKS) return INVALID_ARGUMENT;
  int file = open(id.internal, O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, (off_t)length(size)) != 0) return SYSTEM_ERROR;
  void* shared = mmap(NULL, length(size), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (shared == MAP_FAILED) return SYSTEM_ERROR;
  Comm* comm = calloc(1, sizeof *comm);
  comm->rank = rank;
  comm->size = size;
  comm->shared = shared;
  comm->sum = malloc(CHUNK);
  memcpy(comm->path, id.internal, sizeof comm->path);
  *made = comm;
  failed = barrier(comm);
  if (rank == 0) unlink(comm->path);  // all have mapped it
  return failed;
}

// Adds the chunks of all ranks, rank by rank.
static void add(const Comm* comm, int type, size_t count) {
  memcpy(comm->sum, comm->shared->chunks, count * 4);
  for (int rank = 1; rank < comm->size; ++rank) {
    const char* from = comm->shared->chunks + (size_t)rank * CHUNK;
    for (size_t i = 0; i < count; ++i) {
      if (type == FLOAT32) ((float*)comm->sum)[i] += ((const float*)from)[i];
      else ((uint32_t*)comm->sum)[i] += ((const uint32_t*)from)[i];
    }
  }
}

// Whether this call is to be made; one that fails is as good as made for who asked.
static int begins(Comm* comm) {
  ++comm->calls;
  if (has_come("STAND_IN_BREAKS", comm)) atomic_store(&comm->error, REMOTE_ERROR);
  while (has_come("STAND_IN_HANGS", comm)) pause_briefly();
  return atomic_load(&comm->error) == SUCCESS;
}

int ncclAllReduce(const void* from, void* to, size_t count, int type, int op, void* at, void* stream) {
  Comm* comm = at;
  if ((type != UINT32 && type != FLOAT32) || op != SUM) return INVALID_ARGUMENT;
  if (!begins(comm)) return SUCCESS;
  char* own = comm->shared->chunks + (size_t)comm->rank * CHUNK;
  for (size_t done = 0; done < count * 4; done += CHUNK) {
    size_t bytes = count * 4 - done < CHUNK ? count * 4 - done : CHUNK;
    if (to_host(own, (uint64_t)from + done, bytes, stream) || wait_for(stream)) return CUDA_ERROR;
    int failed = barrier(comm);
    if (failed) return failed;
    add(comm, type, bytes / 4);
    failed = barrier(comm);
    if (failed) return failed;
    if (to_device((uint64_t)to + done, comm->sum, bytes, stream) || wait_for(stream)) return CUDA_ERROR;
  }
  return SUCCESS;
}

int ncclAllGather(const void* from, void* to, size_t count, int type, void* at, void* stream) {
  Comm* comm = at;
  if (type != UINT32 && type != FLOAT32) return INVALID_ARGUMENT;
  if (!begins(comm)) return SUCCESS;
  char* own = comm->shared->chunks + (size_t)comm->rank * CHUNK;
  for (size_t done = 0; done < count * 4; done += CHUNK) {
    size_t bytes = count * 4 - done < CHUNK ? count * 4 - done : CHUNK;
    if (to_host(own, (uint64_t)from + done, bytes, stream) || wait_for(stream)) return CUDA_ERROR;
    int failed = barrier(comm);
    if (failed) return failed;
    for (int rank = 0; rank < comm->size; ++rank) {
      uint64_t place = (uint64_t)to + (uint64_t)rank * count * 4 + done;
      if (to_device(place, comm->shared->chunks + (size_t)rank * CHUNK, bytes, stream)) return CUDA_ERROR;
    }
    if (wait_for(stream)) return CUDA_ERROR;
    failed = barrier(comm);
    if (failed) return failed;
  }
  return SUCCESS;
}

int ncclGroupStart(void) { return SUCCESS; }
int ncclGroupEnd(void) { return SUCCESS; }

int ncclCommGetAsyncError(void* at, int* error) {
  *error = atomic_load(&((Comm*)at)->error);
  return SUCCESS;
}

int ncclCommAbort(void* at) {
  atomic_store(&((Comm*)at)->aborted, 1);
  return SUCCESS;
}

int ncclCommDestroy(void* at) {
  Comm* comm = at;
  munmap(comm->shared, length(comm->size));
  free(comm->sum);
  free(comm);
  return SUCCESS;
}

const char* ncclGetErrorString(int code) {
  switch (code) {
    case SUCCESS: return "no error";
    case CUDA_ERROR: return "unhandled cuda error";
    case SYSTEM_ERROR: return "unhandled system error";
    case INVALID_ARGUMENT: return "invalid argument";
    case REMOTE_ERROR: return "remote process exited or there was a network error";
    default: return "unknown result code";
  }
}

const char* ncclGetLastError(void* comm) {
  (void)comm;
  return "";
}
