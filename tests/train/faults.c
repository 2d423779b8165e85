// What a cluster's file systems and clocks do to a process, as a library that is loaded before the
// system's (LD_PRELOAD). Each fault is there if its variable is set.
//
//   FAULT_LOCKS=ERRNO      flock fails with it
//   FAULT_FOLDER_SYNC=ERRNO  so does fsync of a folder
//   FAULT_FULL=FILE        while FILE exists: writes to regular files fail with ENOSPC after half
//   FAULT_FULL_ONLY=TEXT   but only to those whose path holds TEXT
//   FAULT_READ_ONLY=FOLDER nothing is made or opened for writing below it: EROFS
//   FAULT_SLOW=TEXT        each write of more than 256 KiB to a path that holds TEXT takes 2 s
//   FAULT_HANG=NAME        whoever opens a path that ends so waits for ever
//   FAULT_CLOCK=FILE       while FILE exists: the time of day is ten years later
//   FAULT_CLOCK_BACK=FILE  or ten years earlier
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SYSTEM(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int number(const char* name) {
  const char* text = getenv(name);
  return text ? atoi(text) : 0;
}

static int is_there(const char* name) {
  const char* path = getenv(name);
  return path && access(path, F_OK) == 0;
}

static int is_kind(int file, mode_t kind) {
  struct stat found;
  return fstat(file, &found) == 0 && (found.st_mode & S_IFMT) == kind;
}

static int fail(int with) {
  errno = with;
  return -1;
}

int flock(int file, int operation) {
  int with = number("FAULT_LOCKS");
  return with ? fail(with) : SYSTEM(flock)(file, operation);
}

int fsync(int file) {
  int with = number("FAULT_FOLDER_SYNC");
  return with && is_kind(file, S_IFDIR) ? fail(with) : SYSTEM(fsync)(file);
}

// Whether the path of a file holds TEXT, the value of a variable.
static int is_named(int file, const char* text) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return strstr(path, text) != NULL;
}

// Whether the disk has no room for a file.
static int is_full(int file) {
  if (!is_there("FAULT_FULL") || !is_kind(file, S_IFREG)) return 0;
  const char* only = getenv("FAULT_FULL_ONLY");
  return !only || is_named(file, only);
}

ssize_t write(int file, const void* bytes, size_t length) {
  const char* slow = getenv("FAULT_SLOW");
  if (slow && length > 256 << 10 && is_named(file, slow)) sleep(2);
  if (is_full(file)) {
    // As a disk that fills up in the middle.
    return length > 1 ? SYSTEM(write)(file, bytes, length / 2) : fail(ENOSPC);
  }
  return SYSTEM(write)(file, bytes, length);
}

static int is_refused(const char* path, int flags) {
  const char* hangs = getenv("FAULT_HANG");
  size_t length = strlen(path), end = hangs ? strlen(hangs) : 0;
  if (end && length >= end && strcmp(path + length - end, hangs) == 0) {
    for (;;) pause();
  }
  const char* below = getenv("FAULT_READ_ONLY");
  return below && (flags & (O_WRONLY | O_RDWR | O_CREAT)) && strncmp(path, below, strlen(below)) == 0;
}

#define OPEN(name)                                                        \
  int name(const char* path, int flags, ...) {                            \
    va_list more;                                                         \
    va_start(more, flags);                                                \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
    va_end(more);                                                         \
    return is_refused(path, flags) ? fail(EROFS) : SYSTEM(name)(path, flags, mode); \
  }

OPEN(open)
OPEN(open64)

int mkdir(const char* path, mode_t mode) {
  return is_refused(path, O_CREAT) ? fail(EROFS) : SYSTEM(mkdir)(path, mode);
}

int clock_gettime(clockid_t clock, struct timespec* now) {
  const time_t ten_years = 315576000;
  int result = SYSTEM(clock_gettime)(clock, now);
  if (result == 0 && clock == CLOCK_REALTIME) {
    if (is_there("FAULT_CLOCK")) now->tv_sec += ten_years;
    if (is_there("FAULT_CLOCK_BACK")) now->tv_sec -= ten_years;
  }
  return result;
}
