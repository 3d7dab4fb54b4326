// Stands between a program and the C library's file functions (LD_PRELOAD). What is under one folder is either recorded,
// operation by operation with all bytes, for tests/campaign/journal.py, or meets a disk that is full after so many
// bytes. Without campaign_arm, or CAMPAIGN_SHIM="MODE:ROOT:FILE" in the environment, it does nothing.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING, RECORD, FULL };
enum { MAPPINGS = 256 };

static int mode;
static char root[PATH_MAX], file[PATH_MAX];
static size_t root_length;
static int log_fd = -1;
static pid_t log_owner;
static long long *left;  // bytes of the full disk, shared by all processes: a file of eight bytes, mapped
static pthread_mutex_t mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static struct { char *start; size_t size; off_t offset; ino_t inode; } mapped[MAPPINGS];

#define REAL(type, name, ...) \
  static type (*real_##name)(__VA_ARGS__); \
  if (!real_##name) real_##name = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static int open_really(int folder, const char *path, int flags, mode_t bits) {
  REAL(int, openat, int, const char *, int, ...);
  return real_openat(folder, path, flags, bits);
}

static ssize_t write_really(int fd, const void *data, size_t size) {
  REAL(ssize_t, write, int, const void *, size_t);
  return real_write(fd, data, size);
}

static void before_fork(void) { pthread_mutex_lock(&mutex); }
static void after_fork(void) { pthread_mutex_unlock(&mutex); }
static void in_child(void) { mutex = (pthread_mutex_t)PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP; }

void campaign_arm(int new_mode, const char *new_root, const char *new_file) {
  snprintf(root, sizeof root, "%s", new_root);
  snprintf(file, sizeof file, "%s", new_file);
  root_length = strlen(root);
  if (new_mode == FULL) {
    int fd = open_really(AT_FDCWD, file, O_RDWR, 0);
    left = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *left, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (left == MAP_FAILED) abort();
  }
  mode = new_mode;
}

__attribute__((constructor)) static void start(void) {
  pthread_atfork(before_fork, after_fork, in_child);
  const char *asked = getenv("CAMPAIGN_SHIM");
  char what[3 * PATH_MAX], *at = what;
  if (!asked) return;
  snprintf(what, sizeof what, "%s", asked);
  int asked_mode = atoi(strsep(&at, ":"));
  const char *asked_root = strsep(&at, ":");
  campaign_arm(asked_mode, asked_root, at);
}

static void begin(void) {  // one operation at a time, in all threads and processes
  pthread_mutex_lock(&mutex);
  if (mode != RECORD) return;
  if (log_owner != getpid()) {
    log_fd = open_really(AT_FDCWD, file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    log_owner = getpid();
  }
  flock(log_fd, LOCK_EX);
}

static void end(void) {
  int error = errno;
  if (mode == RECORD) flock(log_fd, LOCK_UN);
  pthread_mutex_unlock(&mutex);
  errno = error;
}

static void emit(const char *what, ino_t inode, off_t offset, size_t size, const char *a, const char *b, const void *data) {
  if (mode != RECORD) return;
  int error = errno;
  char head[2 * PATH_MAX + 200];
  int length = snprintf(head, sizeof head, "%s\t%lu\t%ld\t%zu\t%s\t%s\n", what, (unsigned long)inode, (long)offset,
                        data ? size : 0, a, b);
  write_really(log_fd, head, length);
  for (size_t done = 0; data && done < size;) {
    ssize_t now = write_really(log_fd, (const char *)data + done, size - done);
    if (now <= 0) abort();
    done += now;
  }
  errno = error;
}

static int under_root(const char *path) {
  return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

// Whether a path is under the root; absolute then in `out`, its last part as it is.
static int watched_path(int folder, const char *path, char *out) {
  char joined[2 * PATH_MAX], base[PATH_MAX], parent[PATH_MAX];
  if (!mode || !path || !*path) return 0;
  if (path[0] == '/') {
    snprintf(joined, sizeof joined, "%s", path);
  } else {
    char link[64];
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, base, sizeof base - 1);
    if (length < 0) return 0;
    base[length] = 0;
    snprintf(joined, sizeof joined, "%s/%s", base, path);
  }
  size_t length = strlen(joined);
  while (length > 1 && joined[length - 1] == '/') joined[--length] = 0;
  char *last = strrchr(joined, '/');
  *last = 0;
  int error = errno;
  int found = realpath(*joined ? joined : "/", parent) != NULL;
  errno = error;
  if (!found) return 0;
  return snprintf(out, PATH_MAX, "%s/%s", parent, last + 1) < PATH_MAX && under_root(out);
}

static int watched_fd(int fd, struct stat *found) {
  char link[64], path[PATH_MAX];
  if (!mode) return 0;
  int error = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  int good = fstat(fd, found) == 0 && (S_ISREG(found->st_mode) || S_ISDIR(found->st_mode));
  ssize_t length = good ? readlink(link, path, sizeof path - 1) : -1;
  errno = error;
  if (length < 0) return 0;
  path[length] = 0;
  return under_root(path);
}

static long long room(long long wanted) {  // how much of it still fits
  if (mode != FULL) return wanted;
  long long fits = *left < wanted ? *left : wanted;
  *left -= fits;
  return fits;
}

static void give_back(const char *path) {  // of a file that loses its last name
  struct stat found;
  if (mode == FULL && lstat(path, &found) == 0 && S_ISREG(found.st_mode) && found.st_nlink == 1) *left += found.st_size;
}

static void emit_mapped(ino_t inode) {  // what was stored through memory since
  for (int i = 0; i < MAPPINGS; i++)
    if (mapped[i].start && mapped[i].inode == inode)
      emit("write", inode, mapped[i].offset, mapped[i].size, "", "", mapped[i].start);
}

static int opened(int folder, const char *path, int flags, mode_t bits) {
  char whole[PATH_MAX];
  if (!(flags & (O_CREAT | O_TRUNC)) || !watched_path(folder, path, whole)) return open_really(folder, path, flags, bits);
  begin();
  struct stat before, after;
  int existed = stat(whole, &before) == 0;
  int fd = open_really(folder, path, flags, bits);
  if (fd >= 0 && fstat(fd, &after) == 0) {
    if (!existed) emit("create", after.st_ino, 0, 0, whole, "", NULL);
    else if (flags & O_TRUNC) {
      if (mode == FULL) *left += before.st_size;
      emit("truncate", after.st_ino, 0, 0, "", "", NULL);
    }
  }
  end();
  return fd;
}

#define BITS(flags) \
  mode_t bits = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); bits = va_arg(more, mode_t); va_end(more); }
int open(const char *path, int flags, ...) { BITS(flags) return opened(AT_FDCWD, path, flags, bits); }
int open64(const char *path, int flags, ...) { BITS(flags) return opened(AT_FDCWD, path, flags, bits); }
int openat(int folder, const char *path, int flags, ...) { BITS(flags) return opened(folder, path, flags, bits); }
int openat64(int folder, const char *path, int flags, ...) { BITS(flags) return opened(folder, path, flags, bits); }
int creat(const char *path, mode_t bits) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, bits); }

static ssize_t written(int fd, const void *data, size_t size, off_t at) {  // at -1: where the file stands
  REAL(ssize_t, pwrite64, int, const void *, size_t, off_t);
  struct stat found;
  int watched = watched_fd(fd, &found) && S_ISREG(found.st_mode);
  if (!watched) return at < 0 ? write_really(fd, data, size) : real_pwrite64(fd, data, size, at);
  begin();
  size_t fits = room(size);
  ssize_t done = -1;
  if (size && !fits) errno = ENOSPC;
  else done = at < 0 ? write_really(fd, data, fits) : real_pwrite64(fd, data, fits, at);
  if (done > 0) emit("write", found.st_ino, at < 0 ? lseek(fd, 0, SEEK_CUR) - done : at, done, "", "", data);
  end();
  return done;
}

ssize_t write(int fd, const void *data, size_t size) { return written(fd, data, size, -1); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return written(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) { return written(fd, data, size, at); }
ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(ssize_t, writev, int, const struct iovec *, int);
  struct stat found;
  if (!watched_fd(fd, &found) || !S_ISREG(found.st_mode)) return real_writev(fd, parts, count);
  ssize_t total = 0;
  for (int i = 0; i < count; i++) {
    ssize_t done = parts[i].iov_len ? written(fd, parts[i].iov_base, parts[i].iov_len, -1) : 0;
    if (done < 0) return total ? total : -1;
    total += done;
    if ((size_t)done < parts[i].iov_len) break;
  }
  return total;
}

static ssize_t copied(int to, ssize_t (*copy)(int, int, off_t *, size_t), int from, off_t *at, size_t size) {
  struct stat found;
  if (!watched_fd(to, &found) || !S_ISREG(found.st_mode)) return copy(to, from, at, size);
  char *data = malloc(size = size > (1 << 20) ? 1 << 20 : size);
  ssize_t had = at ? pread(from, data, size, *at) : read(from, data, size);
  ssize_t done = had > 0 ? written(to, data, had, -1) : had;
  if (done > 0 && at) *at += done;
  if (done < had && !at) lseek(from, (done > 0 ? done : 0) - had, SEEK_CUR);
  free(data);
  return done;
}
ssize_t sendfile(int to, int from, off_t *at, size_t size) {
  REAL(ssize_t, sendfile, int, int, off_t *, size_t);
  return copied(to, real_sendfile, from, at, size);
}
ssize_t sendfile64(int to, int from, off_t *at, size_t size) { return sendfile(to, from, at, size); }

static int cut(int fd, off_t size) {
  REAL(int, ftruncate64, int, off_t);
  struct stat found;
  if (!watched_fd(fd, &found)) return real_ftruncate64(fd, size);
  begin();
  int status = real_ftruncate64(fd, size);
  if (status == 0) emit("truncate", found.st_ino, size, 0, "", "", NULL);
  if (status == 0 && mode == FULL && size < found.st_size) *left += found.st_size - size;
  end();
  return status;
}
int ftruncate(int fd, off_t size) { return cut(fd, size); }
int ftruncate64(int fd, off_t size) { return cut(fd, size); }

static int allocated(int fd, off_t at, off_t size) {
  REAL(int, posix_fallocate64, int, off_t, off_t);
  struct stat found;
  if (!watched_fd(fd, &found)) return real_posix_fallocate64(fd, at, size);
  begin();
  long long more = at + size - (long long)found.st_blocks * 512;
  int status = ENOSPC;
  if (mode != FULL || more <= 0 || more <= *left) {
    if (more > 0) room(more);
    status = real_posix_fallocate64(fd, at, size);
    if (status == 0 && at + size > found.st_size) emit("truncate", found.st_ino, at + size, 0, "", "", NULL);
  }
  end();
  return status;
}
int posix_fallocate(int fd, off_t at, off_t size) { return allocated(fd, at, size); }
int posix_fallocate64(int fd, off_t at, off_t size) { return allocated(fd, at, size); }

static int named(const char *what, int from_folder, const char *from, int to_folder, const char *to, int link) {
  REAL(int, renameat, int, const char *, int, const char *);
  REAL(int, linkat, int, const char *, int, const char *, int);
  char a[PATH_MAX], b[PATH_MAX];
  struct stat found;
  int watched = watched_path(to_folder, to, b) && watched_path(from_folder, from, a);
  if (watched) begin();
  if (watched && lstat(a, &found) == 0) emit_mapped(found.st_ino);
  if (watched && !link) give_back(b);
  int status = link ? real_linkat(from_folder, from, to_folder, to, 0) : real_renameat(from_folder, from, to_folder, to);
  if (watched && status == 0) emit(what, 0, 0, 0, a, b, NULL);
  if (watched) end();
  return status;
}
int rename(const char *a, const char *b) { return named("rename", AT_FDCWD, a, AT_FDCWD, b, 0); }
int renameat(int f, const char *a, int g, const char *b) { return named("rename", f, a, g, b, 0); }
int link(const char *a, const char *b) { return named("link", AT_FDCWD, a, AT_FDCWD, b, 1); }
int linkat(int f, const char *a, int g, const char *b, int flags) { (void)flags; return named("link", f, a, g, b, 1); }

static int removed(int folder, const char *path, int flags) {
  REAL(int, unlinkat, int, const char *, int);
  char whole[PATH_MAX];
  int watched = watched_path(folder, path, whole);
  if (watched) begin();
  if (watched) give_back(whole);
  int status = real_unlinkat(folder, path, flags);
  if (watched && status == 0) emit("remove", 0, 0, 0, whole, "", NULL);
  if (watched) end();
  return status;
}
int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int unlinkat(int folder, const char *path, int flags) { return removed(folder, path, flags); }
int rmdir(const char *path) { return removed(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int folder, const char *path, mode_t bits) {
  REAL(int, mkdirat, int, const char *, mode_t);
  char whole[PATH_MAX];
  int watched = watched_path(folder, path, whole);
  if (watched) begin();
  int status = real_mkdirat(folder, path, bits);
  if (watched && status == 0) emit("mkdir", 0, 0, 0, whole, "", NULL);
  if (watched) end();
  return status;
}
int mkdir(const char *path, mode_t bits) { return mkdirat(AT_FDCWD, path, bits); }

static int synced(int fd, int data) {
  REAL(int, fsync, int);
  REAL(int, fdatasync, int);
  struct stat found;
  char link[64], path[PATH_MAX];
  if (!watched_fd(fd, &found)) return data ? real_fdatasync(fd) : real_fsync(fd);
  begin();
  emit_mapped(found.st_ino);
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  path[length < 0 ? 0 : length] = 0;
  // Not really: what is recorded needs no disk, and what meets a full one neither.
  emit(S_ISDIR(found.st_mode) ? "syncdir" : "sync", found.st_ino, 0, 0, path, "", NULL);
  end();
  return 0;
}
int fsync(int fd) { return synced(fd, 0); }
int fdatasync(int fd) { return synced(fd, 1); }

static void *mapping(void *start, size_t size, int rights, int flags, int fd, off_t offset) {
  REAL(void *, mmap64, void *, size_t, int, int, int, off_t);
  struct stat found;
  int shared = mode && fd >= 0 && (flags & MAP_SHARED) && (rights & PROT_WRITE) && watched_fd(fd, &found);
  void *at = real_mmap64(start, size, rights, flags, fd, offset);
  if (!shared || at == MAP_FAILED) return at;
  begin();
  // A store into a hole of a file ends the process, where the disk has no room for it.
  if (mode == FULL) {
    long long hole = found.st_size - (long long)found.st_blocks * 512;
    if (hole > 0 && room(hole) < hole) raise(SIGBUS);
  }
  for (int i = 0; i < MAPPINGS; i++)
    if (!mapped[i].start) {
      mapped[i].start = at, mapped[i].size = size, mapped[i].offset = offset, mapped[i].inode = found.st_ino;
      break;
    }
  end();
  return at;
}
void *mmap(void *s, size_t n, int r, int f, int fd, off_t o) { return mapping(s, n, r, f, fd, o); }
void *mmap64(void *s, size_t n, int r, int f, int fd, off_t o) { return mapping(s, n, r, f, fd, o); }

int munmap(void *start, size_t size) {
  REAL(int, munmap, void *, size_t);
  for (int i = 0; mode && i < MAPPINGS; i++)
    if (mapped[i].start && mapped[i].start == start) {
      begin();
      emit("write", mapped[i].inode, mapped[i].offset, mapped[i].size, "", "", start);
      mapped[i].start = NULL;
      end();
    }
  return real_munmap(start, size);
}

int msync(void *start, size_t size, int flags) {
  REAL(int, msync, void *, size_t, int);
  for (int i = 0; mode && i < MAPPINGS; i++)
    if (mapped[i].start && mapped[i].start <= (char *)start && (char *)start < mapped[i].start + mapped[i].size) {
      begin();
      emit("write", mapped[i].inode, mapped[i].offset, mapped[i].size, "", "", mapped[i].start);
      if (flags & MS_SYNC) emit("sync", mapped[i].inode, 0, 0, "", "", NULL);
      end();
    }
  return mode ? 0 : real_msync(start, size, flags);
}
