// Preloaded into the program under test: counts its calls of the system that touch files, and at the FAIL_AT-th one
// does what FAIL_WITH says: EIO, ENOSPC (the call fails), or KILL, INT, TERM (a signal, in front of the call). With
// FAIL_COUNT=FILE the number of calls is written there at the end.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static long calls;
static pthread_mutex_t calls_mutex = PTHREAD_MUTEX_INITIALIZER;

// Whether this call is to fail, with errno set.
static int fails(void) {
    const char* at = getenv("FAIL_AT");
    const char* with = getenv("FAIL_WITH");
    pthread_mutex_lock(&calls_mutex);
    const long number = ++calls;
    pthread_mutex_unlock(&calls_mutex);
    if (at == NULL || with == NULL || atol(at) != number) return 0;
    if (strcmp(with, "KILL") == 0) kill(getpid(), SIGKILL);
    if (strcmp(with, "INT") == 0) kill(getpid(), SIGINT);
    if (strcmp(with, "TERM") == 0) kill(getpid(), SIGTERM);
    errno = strcmp(with, "ENOSPC") == 0 ? ENOSPC : EIO;
    return strcmp(with, "EIO") == 0 || strcmp(with, "ENOSPC") == 0;
}

__attribute__((destructor)) static void report(void) {
    const char* path = getenv("FAIL_COUNT");
    FILE* file = path != NULL ? fopen(path, "w") : NULL;
    if (file == NULL) return;
    fprintf(file, "%ld", calls);
    fclose(file);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pread(int descriptor, void* buffer, size_t size, off_t offset) {
    return fails() ? -1 : REAL(pread)(descriptor, buffer, size, offset);
}
ssize_t pwrite(int descriptor, const void* buffer, size_t size, off_t offset) {
    return fails() ? -1 : REAL(pwrite)(descriptor, buffer, size, offset);
}
ssize_t write(int descriptor, const void* buffer, size_t size) {
    return descriptor > STDERR_FILENO && fails() ? -1 : REAL(write)(descriptor, buffer, size);
}
int fsync(int descriptor) {
    return fails() ? -1 : REAL(fsync)(descriptor);
}
int ftruncate(int descriptor, off_t size) {
    return fails() ? -1 : REAL(ftruncate)(descriptor, size);
}
int fallocate(int descriptor, int mode, off_t offset, off_t size) {
    return fails() ? -1 : REAL(fallocate)(descriptor, mode, offset, size);
}
int rename(const char* from, const char* to) {
    return fails() ? -1 : REAL(rename)(from, to);
}
