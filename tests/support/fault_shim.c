/* File calls of a whole process, counted, and failed or killed at the n-th: preloaded, so that nothing in the process
 * knows of it, whichever language made the call (fault_shim.py compiles, loads and arms it).
 *
 * Counted are calls on paths under a root, of the kinds in a mask. A call that goes around libc (a mapped page, io_uring)
 * is not seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { READ = 1, OPEN = 2, WRITE = 4, SYNC = 8, RENAME = 16, MKDIR = 32, UNLINK = 64, CLOSE = 128, TRUNCATE = 256,
            LINK = 512, ATTRIBUTES = 1024 };
enum mode { COUNT, KILL, FAIL_ONCE, FAIL_FROM, SHORT, DELAY };

struct state {                 /* shared with whoever forked the process, and with its children */
    atomic_long calls;         /* counted so far */
    atomic_long hits;          /* of them failed, cut short or delayed */
    atomic_long of_kind[11];   /* all calls under the root, by kind */
    char hit[512];             /* the first of those: what and where */
};
static struct plan {
    struct state *state;
    char root[4096];
    size_t root_length;
    int mode, error, kinds;
    long at;
    pid_t pid;
} plan;

void fault_arm(struct state *state, const char *root, int mode, int kinds, int error, long at) {
    plan = (struct plan){.state = state, .mode = mode, .error = error, .kinds = kinds, .at = at, .pid = getpid()};
    plan.root_length = strlen(root);
    strncpy(plan.root, root, sizeof plan.root - 1);
}

static long skew; /* seconds that this process's clock is wrong by */

void fault_skew(long seconds) { skew = seconds; }

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int is_inside(const char *path) {
    return !strncmp(path, plan.root, plan.root_length) && (!path[plan.root_length] || path[plan.root_length] == '/');
}

static ssize_t path_of(int descriptor, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, size - 1);
    path[length < 0 ? 0 : length] = 0;
    return length;
}

/* Whether this call is the one: 0 to go on, or -1 with errno set, or 1 to cut it short. */
static int strike(int kind, const char *name, const char *path) {
    if (!plan.state || !is_inside(path)) return 0;
    atomic_fetch_add(&plan.state->of_kind[__builtin_ctz(kind)], 1);
    if (!(plan.kinds & kind)) return 0;
    long number = atomic_fetch_add(&plan.state->calls, 1) + 1;
    if (plan.mode == COUNT || (plan.mode == FAIL_FROM ? number < plan.at : number != plan.at)) return 0;
    if (!atomic_fetch_add(&plan.state->hits, 1))
        snprintf(plan.state->hit, sizeof plan.state->hit, "%s %s", name, path + plan.root_length);
    switch (plan.mode) {
    case KILL:
        kill(plan.pid, SIGKILL);
        kill(getpid(), SIGKILL);
        for (;;) pause();
    case DELAY:
        nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
        return 0;
    case SHORT:
        return 1;
    default:
        errno = plan.error;
        return -1;
    }
}

static int strike_at(int kind, const char *name, int folder, const char *path) {
    char whole[8192];
    if (!plan.state || !path) return 0;
    if (path[0] == '/') return strike(kind, name, path);
    if (folder == AT_FDCWD) {
        if (!getcwd(whole, 4096)) return 0;
    } else if (path_of(folder, whole, 4096) < 0)
        return 0;
    size_t length = strlen(whole);
    snprintf(whole + length, sizeof whole - length, "/%s", path);
    return strike(kind, name, whole);
}

static int strike_descriptor(int kind, const char *name, int descriptor) {
    char path[4096];
    int before = errno;
    if (!plan.state || path_of(descriptor, path, sizeof path) < 0) {
        errno = before;
        return 0;
    }
    return strike(kind, name, path);
}

static int opening(int flags) { return flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC) ? OPEN : READ; }

#define OPENING(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, #name, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return strike_at(opening(flags), "open", AT_FDCWD, path) < 0 ? -1 : real(path, flags, mode); \
    }
#define OPENING_AT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        REAL(int, #name, int, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return strike_at(opening(flags), "open", folder, path) < 0 ? -1 : real(folder, path, flags, mode); \
    }
OPENING(open)
OPENING(open64)
OPENING_AT(openat)
OPENING_AT(openat64)

#define OPENING_STREAM(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(FILE *, #name, const char *, const char *); \
        int kind = strpbrk(mode, "wa+") ? OPEN : READ; \
        return strike_at(kind, "open", AT_FDCWD, path) < 0 ? NULL : real(path, mode); \
    }
OPENING_STREAM(fopen)
OPENING_STREAM(fopen64)

/* A write by half must write something, or its caller would try for ever. */
static size_t some_of(int struck, size_t size) { return struck > 0 && size > 1 ? size / 2 : size; }

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    int struck = strike_descriptor(WRITE, "write", descriptor);
    return struck < 0 ? -1 : real(descriptor, data, some_of(struck, size));
}

#define WRITING_AT(name) \
    ssize_t name(int descriptor, const void *data, size_t size, off64_t offset) { \
        REAL(ssize_t, #name, int, const void *, size_t, off64_t); \
        int struck = strike_descriptor(WRITE, #name, descriptor); \
        return struck < 0 ? -1 : real(descriptor, data, some_of(struck, size), offset); \
    }
WRITING_AT(pwrite)
WRITING_AT(pwrite64)

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    int struck = strike_descriptor(WRITE, "writev", descriptor);
    return struck < 0 ? -1 : real(descriptor, parts, (int)some_of(struck, (size_t)count));
}

#define SENDING(name) \
    ssize_t name(int to, int from, off64_t *offset, size_t size) { \
        REAL(ssize_t, #name, int, int, off64_t *, size_t); \
        int struck = strike_descriptor(WRITE, "sendfile", to); \
        return struck < 0 ? -1 : real(to, from, offset, some_of(struck, size)); \
    }
SENDING(sendfile)
SENDING(sendfile64)

ssize_t copy_file_range(int from, off64_t *read_at, int to, off64_t *write_at, size_t size, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    int struck = strike_descriptor(WRITE, "copy_file_range", to);
    return struck < 0 ? -1 : real(from, read_at, to, write_at, some_of(struck, size), flags);
}

#define ON_DESCRIPTOR(name, kind) \
    int name(int descriptor) { \
        REAL(int, #name, int); \
        return strike_descriptor(kind, #name, descriptor) < 0 ? -1 : real(descriptor); \
    }
ON_DESCRIPTOR(fsync, SYNC)
ON_DESCRIPTOR(fdatasync, SYNC)

/* What was only read closes without a fault. One that fails has closed nonetheless. */
int close(int descriptor) {
    REAL(int, "close", int);
    int written = plan.state && (fcntl(descriptor, F_GETFL) & O_ACCMODE) != O_RDONLY;
    int struck = written ? strike_descriptor(CLOSE, "close", descriptor) : 0, error = errno;
    int done = real(descriptor);
    if (struck < 0) errno = error;
    return struck < 0 ? -1 : done;
}

#define ON_PATH(name, kind, type) \
    int name(const char *path, type value) { \
        REAL(int, #name, const char *, type); \
        return strike_at(kind, #name, AT_FDCWD, path) < 0 ? -1 : real(path, value); \
    }
#define ON_PATH_AT(name, kind, type) \
    int name(int folder, const char *path, type value) { \
        REAL(int, #name, int, const char *, type); \
        return strike_at(kind, #name, folder, path) < 0 ? -1 : real(folder, path, value); \
    }
ON_PATH(mkdir, MKDIR, mode_t)
ON_PATH_AT(mkdirat, MKDIR, mode_t)
ON_PATH(chmod, ATTRIBUTES, mode_t)
ON_PATH(truncate, TRUNCATE, off_t)
ON_PATH(truncate64, TRUNCATE, off64_t)
ON_PATH_AT(unlinkat, UNLINK, int)

#define REMOVING(name) \
    int name(const char *path) { \
        REAL(int, #name, const char *); \
        return strike_at(UNLINK, #name, AT_FDCWD, path) < 0 ? -1 : real(path); \
    }
REMOVING(unlink)
REMOVING(rmdir)
REMOVING(remove)

#define CUTTING(name) \
    int name(int descriptor, off64_t size) { \
        REAL(int, #name, int, off64_t); \
        return strike_descriptor(TRUNCATE, "ftruncate", descriptor) < 0 ? -1 : real(descriptor, size); \
    }
CUTTING(ftruncate)
CUTTING(ftruncate64)

int fchmod(int descriptor, mode_t mode) {
    REAL(int, "fchmod", int, mode_t);
    return strike_descriptor(ATTRIBUTES, "fchmod", descriptor) < 0 ? -1 : real(descriptor, mode);
}

int fchmodat(int folder, const char *path, mode_t mode, int flags) {
    REAL(int, "fchmodat", int, const char *, mode_t, int);
    return strike_at(ATTRIBUTES, "fchmodat", folder, path) < 0 ? -1 : real(folder, path, mode, flags);
}

/* The new name counts: a rename into the root is a write there. */
#define PAIRING(name, kind) \
    int name(const char *old, const char *new) { \
        REAL(int, #name, const char *, const char *); \
        return strike_at(kind, #name, AT_FDCWD, new) < 0 ? -1 : real(old, new); \
    }
PAIRING(rename, RENAME)
PAIRING(link, LINK)
PAIRING(symlink, LINK)

int renameat(int from, const char *old, int to, const char *new) {
    REAL(int, "renameat", int, const char *, int, const char *);
    return strike_at(RENAME, "renameat", to, new) < 0 ? -1 : real(from, old, to, new);
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    REAL(int, "renameat2", int, const char *, int, const char *, unsigned);
    return strike_at(RENAME, "renameat2", to, new) < 0 ? -1 : real(from, old, to, new, flags);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    int done = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += skew;
    return done;
}

time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
