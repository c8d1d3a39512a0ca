/*
 * Preloaded into a process, writes down what it does to the files below one directory, and what it made durable.
 *
 *   POWER_LOSS_DIRECTORY   the directory, an absolute path without links; it may not exist yet
 *   POWER_LOSS_LOG         the file that the records go to, in the order of the events
 *   POWER_LOSS_LIE         "files", "directories" or "all": fsync of these reports success and does nothing
 *
 * A change of a file's content is written down before it is made, a change of names and a success of fsync after it,
 * all under one lock. So when the process is killed, at most the last record tells of something that did not happen,
 * and at most one change of names is not told of, which can be seen by looking. Whatever goes wrong ends the process:
 * a log with a gap would acquit the guilty.
 *
 * Calls go to the kernel directly, never through a wrapper, so there is nothing to look up and nothing to recurse into.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Longest path, in bytes; longest list of a directory's names, in bytes. */
enum { PATH = 4096, LIST = 65536 };

/* What a record tells; `log.rs` reads them. */
enum kind {
    BEGUN = 'B',   /* the layer is in the process */
    CREATED = 'C', /* inode: an empty file */
    MADE = 'M',    /* inode: an empty directory */
    WRITTEN = 'W', /* inode, number = offset, payload = bytes */
    RESIZED = 'R', /* inode, number = new length in bytes */
    NAMES = 'N',   /* inode of a directory, payload = its entries now */
    SYNCED = 'S',  /* inode; all records below log offset `number` are durable as far as they are about it */
};

struct record {
    uint64_t kind, length, inode, number;
};

/* A file or directory that is watched. */
struct subject {
    uint64_t inode;
    int directory;
    char path[PATH];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH], parent[PATH];
static const char *lie = "";
static int journal = -1;

static void give_up(const char *what) {
    dprintf(2, "power loss layer: %s: %s\n", what, strerror(errno));
    abort();
}

static void note(enum kind kind, uint64_t inode, uint64_t number, const void *payload, size_t length) {
    struct record record = {kind, length, inode, number};
    struct iovec parts[2] = {{&record, sizeof record}, {(void *)payload, length}};
    if (syscall(SYS_writev, journal, parts, 2) != (long)(sizeof record + length)) give_up("the log");
}

static uint64_t noted(void) {
    off_t end = lseek(journal, 0, SEEK_END);
    if (end < 0) give_up("the log's end");
    return end;
}

__attribute__((constructor)) static void begin(void) {
    const char *directory = getenv("POWER_LOSS_DIRECTORY"), *path = getenv("POWER_LOSS_LOG");
    if (!directory || !path || directory[0] != '/' || strlen(directory) >= PATH) give_up("its environment");
    strcpy(root, directory);
    strcpy(parent, directory);
    *strrchr(parent, '/') = 0;
    if (getenv("POWER_LOSS_LIE")) lie = getenv("POWER_LOSS_LIE");
    int low = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CLOEXEC, 0);
    /* Out of the way of descriptors that are expected to have the next free number. */
    journal = fcntl(low, F_DUPFD_CLOEXEC, 900);
    if (journal < 0) give_up(path);
    close(low);
    note(BEGUN, 0, 0, 0, 0);
}

/* The directory itself, what is in it, and the directory that it is in, of which only this one name counts. */
static int is_watched(const char *path) {
    size_t length = strlen(root);
    return strcmp(path, parent) == 0 || (strncmp(path, root, length) == 0 && (path[length] == 0 || path[length] == '/'));
}

static int find_path(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH - 1);
    if (length < 0 || length == PATH - 1) return 0;
    path[length] = 0;
    return 1;
}

/* Sockets, pipes and terminals are told apart first: they are what is mostly written to. */
static int find(int fd, struct subject *subject) {
    struct stat stat;
    if (journal < 0 || fstat(fd, &stat) != 0 || !(S_ISREG(stat.st_mode) || S_ISDIR(stat.st_mode))) return 0;
    subject->inode = stat.st_ino;
    subject->directory = S_ISDIR(stat.st_mode);
    return find_path(fd, subject->path) && is_watched(subject->path);
}

/* Notes the entries of an open directory: inode, a byte that tells a directory, a byte of length, the name. */
static void note_names(int fd, uint64_t inode, const char *path) {
    static char list[LIST], raw[LIST]; /* under the lock */
    size_t used = 0;
    int above = strcmp(path, parent) == 0;
    int own = syscall(SYS_openat, fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (own < 0) give_up(path);
    long got;
    while ((got = syscall(SYS_getdents64, own, raw, sizeof raw)) > 0) {
        for (long at = 0; at < got; at += ((struct dirent64 *)(raw + at))->d_reclen) {
            const char *name = ((struct dirent64 *)(raw + at))->d_name;
            struct stat stat;
            if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
            if (above && strcmp(name, root + strlen(parent) + 1) != 0) continue;
            if (fstatat(own, name, &stat, AT_SYMLINK_NOFOLLOW) != 0) continue;
            if (!S_ISREG(stat.st_mode) && !S_ISDIR(stat.st_mode)) continue;
            uint64_t entry = stat.st_ino;
            size_t length = strlen(name);
            if (used + 10 + length > LIST) give_up("a directory with too many names");
            memcpy(list + used, &entry, 8);
            list[used + 8] = S_ISDIR(stat.st_mode);
            list[used + 9] = length;
            memcpy(list + used + 10, name, length);
            used += 10 + length;
        }
    }
    if (got < 0) give_up(path);
    close(own);
    note(NAMES, inode, 0, list, used);
}

/* Notes how the directory of `path` looks now. */
static void note_place(int at, const char *path) {
    char place[PATH];
    struct subject subject;
    if (strlen(path) >= PATH) return;
    strcpy(place, path);
    size_t end = strlen(place);
    while (end > 1 && place[end - 1] == '/') place[--end] = 0;
    char *slash = strrchr(place, '/');
    if (!slash) strcpy(place, ".");
    else if (slash == place) place[1] = 0;
    else *slash = 0;
    int fd = syscall(SYS_openat, at, place, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (fd < 0) return;
    if (find(fd, &subject)) note_names(fd, subject.inode, subject.path);
    close(fd);
}

/* Files: opened and made. */

static int open_any(int at, const char *path, int flags, mode_t mode) {
    int nameless = (flags & O_TMPFILE) == O_TMPFILE;
    if (!nameless && !(flags & (O_CREAT | O_TRUNC))) return syscall(SYS_openat, at, path, flags, mode);
    struct stat before;
    struct subject subject;
    pthread_mutex_lock(&lock);
    int existed = !nameless && fstatat(at, path, &before, flags & O_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0) == 0;
    int fd = syscall(SYS_openat, at, path, flags, mode);
    int failure = errno;
    if (fd >= 0 && find(fd, &subject) && !subject.directory) {
        if (existed) {
            if (flags & O_TRUNC) note(RESIZED, subject.inode, 0, 0, 0);
        } else {
            note(CREATED, subject.inode, 0, 0, 0);
            if (!nameless) note_place(AT_FDCWD, subject.path);
        }
    }
    pthread_mutex_unlock(&lock);
    errno = failure;
    return fd;
}

static mode_t mode_of(int flags, va_list rest) {
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name)                                          \
    int name(const char *path, int flags, ...) {            \
        va_list rest;                                       \
        va_start(rest, flags);                              \
        mode_t mode = mode_of(flags, rest);                 \
        va_end(rest);                                       \
        return open_any(AT_FDCWD, path, flags, mode);       \
    }
#define OPENAT(name)                                        \
    int name(int at, const char *path, int flags, ...) {    \
        va_list rest;                                       \
        va_start(rest, flags);                              \
        mode_t mode = mode_of(flags, rest);                 \
        va_end(rest);                                       \
        return open_any(at, path, flags, mode);             \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int creat(const char *path, mode_t mode) { return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

/* Files: changed. */

static ssize_t write_watched(int fd, const struct subject *subject, const void *bytes, size_t length, off_t offset) {
    pthread_mutex_lock(&lock);
    int moves = offset < 0;
    if (moves) offset = lseek(fd, 0, fcntl(fd, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    note(WRITTEN, subject->inode, offset, bytes, length);
    ssize_t done = moves ? syscall(SYS_write, fd, bytes, length) : syscall(SYS_pwrite64, fd, bytes, length, offset);
    if (done != (ssize_t)length) give_up("a write that fails, which it does not know how to tell");
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    struct subject subject;
    if (!find(fd, &subject)) return syscall(SYS_write, fd, bytes, length);
    return write_watched(fd, &subject, bytes, length, -1);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    struct subject subject;
    if (!find(fd, &subject)) return syscall(SYS_pwrite64, fd, bytes, length, offset);
    return write_watched(fd, &subject, bytes, length, offset);
}
ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) { return pwrite(fd, bytes, length, offset); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    struct subject subject;
    if (!find(fd, &subject)) return syscall(SYS_writev, fd, parts, count);
    ssize_t done = 0;
    for (int part = 0; part < count; part++)
        done += write_watched(fd, &subject, parts[part].iov_base, parts[part].iov_len, -1);
    return done;
}

int ftruncate(int fd, off_t length) {
    struct subject subject;
    if (!find(fd, &subject)) return syscall(SYS_ftruncate, fd, length);
    pthread_mutex_lock(&lock);
    note(RESIZED, subject.inode, length, 0, 0);
    if (syscall(SYS_ftruncate, fd, length) != 0) give_up("a resize that fails, which it does not know how to tell");
    pthread_mutex_unlock(&lock);
    return 0;
}
int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

/* Files and directories: made durable. */

static int sync_any(int fd, long call) {
    struct subject subject;
    if (!find(fd, &subject)) return syscall(call, fd);
    if (strcmp(lie, "all") == 0 || strcmp(lie, subject.directory ? "directories" : "files") == 0) return 0;
    pthread_mutex_lock(&lock);
    /* Somebody may have changed names by ways that are not seen here. */
    if (subject.directory) note_names(fd, subject.inode, subject.path);
    /* What others write while the disk works may come too late. */
    uint64_t before = noted();
    pthread_mutex_unlock(&lock);
    if (syscall(call, fd) != 0) return -1;
    pthread_mutex_lock(&lock);
    note(SYNCED, subject.inode, before, 0, 0);
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int fd) { return sync_any(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_any(fd, SYS_fdatasync); }

/* Names. */

static int renamed(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    pthread_mutex_lock(&lock);
    int result = syscall(SYS_renameat2, from_at, from, to_at, to, flags), failure = errno;
    if (result == 0) {
        note_place(from_at, from);
        note_place(to_at, to);
    }
    pthread_mutex_unlock(&lock);
    errno = failure;
    return result;
}

static int unlinked(int at, const char *path, int flags) {
    pthread_mutex_lock(&lock);
    int result = syscall(SYS_unlinkat, at, path, flags), failure = errno;
    if (result == 0) note_place(at, path);
    pthread_mutex_unlock(&lock);
    errno = failure;
    return result;
}

int rename(const char *from, const char *to) { return renamed(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_at, const char *from, int to_at, const char *to) { return renamed(from_at, from, to_at, to, 0); }
int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    return renamed(from_at, from, to_at, to, flags);
}
int unlink(const char *path) { return unlinked(AT_FDCWD, path, 0); }
int unlinkat(int at, const char *path, int flags) { return unlinked(at, path, flags); }
int rmdir(const char *path) { return unlinked(AT_FDCWD, path, AT_REMOVEDIR); }

int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    pthread_mutex_lock(&lock);
    int result = syscall(SYS_linkat, from_at, from, to_at, to, flags), failure = errno;
    if (result == 0) note_place(to_at, to);
    pthread_mutex_unlock(&lock);
    errno = failure;
    return result;
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int mkdirat(int at, const char *path, mode_t mode) {
    pthread_mutex_lock(&lock);
    int result = syscall(SYS_mkdirat, at, path, mode), failure = errno;
    int fd = result == 0 ? syscall(SYS_openat, at, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0) : -1;
    struct subject subject;
    if (fd >= 0 && find(fd, &subject)) {
        note(MADE, subject.inode, 0, 0, 0);
        note_place(at, path);
    }
    if (fd >= 0) close(fd);
    pthread_mutex_unlock(&lock);
    errno = failure;
    return result;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
