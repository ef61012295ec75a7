/* A disk on which the n-th write fails, for one folder: preloaded (LD_PRELOAD) into a process and its children.

   A write is any call that changes the folder: a file or folder made, bytes written, a name changed or linked, a
   length set, a sync. FAILING_STATE names a file that all processes map: what to fail, and how many writes were seen.
   Built by fault_disk.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct state {
    long seen;             /* writes so far */
    long nth;              /* the first that fails; 0: none */
    long last;             /* the last that fails */
    long code;             /* errno */
    char folder[PATH_MAX]; /* absolute */
    char failed[PATH_MAX + 32]; /* the call that failed first, and its path */
};
static struct state *state;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAILING_STATE");
    int (*plain)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int file = path ? plain(path, O_RDWR) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) state = mapped;
}

/* Whether this call is to fail. */
static int fails(const char *call, const char *path) {
    if (!state || !state->folder[0]) return 0;
    size_t length = strlen(state->folder);
    if (strncmp(path, state->folder, length) || (path[length] && path[length] != '/')) return 0;
    long k = __atomic_add_fetch(&state->seen, 1, __ATOMIC_SEQ_CST);
    if (!state->nth || k < state->nth || k > state->last) return 0;
    if (k == state->nth) snprintf(state->failed, sizeof state->failed, "%s %s", call, path);
    errno = state->code;
    return 1;
}

static int fails_at(const char *call, int folder, const char *path) {
    char whole[2 * PATH_MAX], start[64];
    if (path[0] == '/') return fails(call, path);
    if (folder == AT_FDCWD) {
        if (!getcwd(whole, PATH_MAX)) return 0;
    } else {
        snprintf(start, sizeof start, "/proc/self/fd/%d", folder);
        ssize_t n = readlink(start, whole, PATH_MAX - 1);
        if (n < 0) return 0;
        whole[n] = 0;
    }
    size_t n = strlen(whole);
    snprintf(whole + n, sizeof whole - n, "/%s", path);
    return fails(call, whole);
}

static int fails_fd(const char *call, int file) {
    char link[64], path[PATH_MAX];
    if (!state || !state->folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return fails(call, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ON_FILE(type, name, parameters, ...) \
    type name parameters { return fails_fd(#name, file) ? -1 : REAL(name)(__VA_ARGS__); }
#define ON_PATH(type, name, parameters, folder, path, ...) \
    type name parameters { return fails_at(#name, folder, path) ? -1 : REAL(name)(__VA_ARGS__); }

ON_FILE(ssize_t, write, (int file, const void *bytes, size_t n), file, bytes, n)
ON_FILE(ssize_t, pwrite, (int file, const void *bytes, size_t n, off_t at), file, bytes, n, at)
ON_FILE(ssize_t, pwrite64, (int file, const void *bytes, size_t n, off64_t at), file, bytes, n, at)
ON_FILE(ssize_t, writev, (int file, const struct iovec *parts, int n), file, parts, n)
ON_FILE(int, fsync, (int file), file)
ON_FILE(int, fdatasync, (int file), file)
ON_FILE(int, ftruncate, (int file, off_t n), file, n)
ON_FILE(int, ftruncate64, (int file, off64_t n), file, n)
ON_PATH(int, mkdir, (const char *path, mode_t mode), AT_FDCWD, path, path, mode)
ON_PATH(int, mkdirat, (int folder, const char *path, mode_t mode), folder, path, folder, path, mode)
ON_PATH(int, rename, (const char *old, const char *path), AT_FDCWD, path, old, path)
ON_PATH(int, renameat, (int from, const char *old, int to, const char *path), to, path, from, old, to, path)
ON_PATH(int, link, (const char *old, const char *path), AT_FDCWD, path, old, path)
ON_PATH(int, linkat, (int from, const char *old, int to, const char *path, int flags), to, path, from, old, to, path,
        flags)

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        if (flags & O_CREAT && fails_at(#name, AT_FDCWD, path)) return -1; \
        return REAL(name)(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        if (flags & O_CREAT && fails_at(#name, folder, path)) return -1; \
        return REAL(name)(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)
