// A library that is linked where glibc is new asks for the newest version of each of its functions, also of those that have been the same for
// twenty years, and does not load on systems that are older. Here their first versions are asked for instead: the linker sends calls of NAME to
// __wrap_NAME (old_glibc.flags, the same names), which jumps there. The addon then needs glibc 2.28 as Node 20 does; so does the CUDA library,
// of which the runtime that NVIDIA gives asks for most.
#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
#include <sys/stat.h>

#if defined(__x86_64__)
#define CONAN_JUMP "jmp "
#define CONAN_AT "@PLT"
#define CONAN_FIRST "GLIBC_2.2.5"
#define CONAN_SINCE_2_3_4 "GLIBC_2.3.4"
#define CONAN_SINCE_2_12 "GLIBC_2.12"
#define CONAN_STAT_VERSION 1
#else
#define CONAN_JUMP "b "
#define CONAN_AT ""
#define CONAN_FIRST "GLIBC_2.17"  // there was none before
#define CONAN_SINCE_2_3_4 CONAN_FIRST
#define CONAN_SINCE_2_12 CONAN_FIRST
#define CONAN_STAT_VERSION 0
#endif

#if defined(__GLIBC__)
#define CONAN_TARGET(name) "old_" name
#define CONAN_VERSION(name, version) ".symver old_" name ", " name "@" version "\n"
#else  // nothing is to be chosen
#define CONAN_TARGET(name) "__real_" name
#define CONAN_VERSION(name, version) ""
#endif
/// A jump in a section of its own, which the linker drops where nothing calls it.
#define CONAN_OLD(name, version)                                                                             \
  __asm__(CONAN_VERSION(name, version) ".pushsection .text.__wrap_" name                                     \
                                       ", \"ax\", %progbits\n"                                               \
                                       ".globl __wrap_" name "\n.hidden __wrap_" name "\n.type __wrap_" name \
                                       ", %function\n"                                                       \
                                       "__wrap_" name ":\n" CONAN_JUMP CONAN_TARGET(name) CONAN_AT "\n.popsection\n");

CONAN_OLD("dladdr", CONAN_FIRST)
CONAN_OLD("dlclose", CONAN_FIRST)
CONAN_OLD("dlerror", CONAN_FIRST)
CONAN_OLD("dlopen", CONAN_FIRST)
CONAN_OLD("dlsym", CONAN_FIRST)
CONAN_OLD("dlvsym", CONAN_FIRST)
CONAN_OLD("exp", CONAN_FIRST)
CONAN_OLD("log", CONAN_FIRST)
CONAN_OLD("pow", CONAN_FIRST)
CONAN_OLD("pthread_condattr_setpshared", CONAN_FIRST)
CONAN_OLD("pthread_create", CONAN_FIRST)
CONAN_OLD("pthread_detach", CONAN_FIRST)
CONAN_OLD("pthread_getspecific", CONAN_FIRST)
CONAN_OLD("pthread_join", CONAN_FIRST)
CONAN_OLD("pthread_key_create", CONAN_FIRST)
CONAN_OLD("pthread_key_delete", CONAN_FIRST)
CONAN_OLD("pthread_kill", CONAN_FIRST)
CONAN_OLD("pthread_mutex_trylock", CONAN_FIRST)
CONAN_OLD("pthread_mutexattr_destroy", CONAN_FIRST)
CONAN_OLD("pthread_mutexattr_init", CONAN_FIRST)
CONAN_OLD("pthread_mutexattr_setpshared", CONAN_FIRST)
CONAN_OLD("pthread_mutexattr_settype", CONAN_FIRST)
CONAN_OLD("pthread_once", CONAN_FIRST)
CONAN_OLD("pthread_rwlock_destroy", CONAN_FIRST)
CONAN_OLD("pthread_rwlock_init", CONAN_FIRST)
CONAN_OLD("pthread_rwlock_rdlock", CONAN_FIRST)
CONAN_OLD("pthread_rwlock_timedrdlock", CONAN_FIRST)
CONAN_OLD("pthread_rwlock_timedwrlock", CONAN_FIRST)
CONAN_OLD("pthread_rwlock_tryrdlock", CONAN_FIRST)
CONAN_OLD("pthread_rwlock_trywrlock", CONAN_FIRST)
CONAN_OLD("pthread_rwlock_unlock", CONAN_FIRST)
CONAN_OLD("pthread_rwlock_wrlock", CONAN_FIRST)
CONAN_OLD("pthread_rwlockattr_destroy", CONAN_FIRST)
CONAN_OLD("pthread_rwlockattr_init", CONAN_FIRST)
CONAN_OLD("pthread_rwlockattr_setpshared", CONAN_FIRST)
CONAN_OLD("pthread_setspecific", CONAN_FIRST)
CONAN_OLD("pthread_spin_destroy", CONAN_FIRST)
CONAN_OLD("pthread_spin_init", CONAN_FIRST)
CONAN_OLD("pthread_spin_lock", CONAN_FIRST)
CONAN_OLD("pthread_spin_trylock", CONAN_FIRST)
CONAN_OLD("pthread_spin_unlock", CONAN_FIRST)
CONAN_OLD("sem_destroy", CONAN_FIRST)
CONAN_OLD("sem_init", CONAN_FIRST)
CONAN_OLD("sem_post", CONAN_FIRST)
CONAN_OLD("sem_timedwait", CONAN_FIRST)
CONAN_OLD("sem_trywait", CONAN_FIRST)
CONAN_OLD("sem_wait", CONAN_FIRST)
CONAN_OLD("shm_open", CONAN_FIRST)
CONAN_OLD("shm_unlink", CONAN_FIRST)
CONAN_OLD("dlmopen", CONAN_SINCE_2_3_4)
CONAN_OLD("pthread_setname_np", CONAN_SINCE_2_12)

#if defined(__GLIBC__)
extern "C" {
// These were no functions of the library until 2.33, but calls of others that say which struct stat is meant.
int old_xstat(int version, const char* path, struct stat* out);
int old_fxstat(int version, int file, struct stat* out);
__asm__(".symver old_xstat, __xstat@" CONAN_FIRST);
__asm__(".symver old_fxstat, __fxstat@" CONAN_FIRST);
__attribute__((visibility("hidden"))) int __wrap_stat(const char* path, struct stat* out) { return old_xstat(CONAN_STAT_VERSION, path, out); }
__attribute__((visibility("hidden"))) int __wrap_fstat(int file, struct stat* out) { return old_fxstat(CONAN_STAT_VERSION, file, out); }
// By their other names, which they have where files are said to be of 64 bits: the same struct on these processors.
__attribute__((visibility("hidden"))) int __wrap_stat64(const char* path, struct stat* out) { return __wrap_stat(path, out); }
__attribute__((visibility("hidden"))) int __wrap_fstat64(int file, struct stat* out) { return __wrap_fstat(file, out); }
// Since 2.32 this says where counters of references need not be atomic. False is right everywhere.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
#else
CONAN_OLD("stat", "")
CONAN_OLD("fstat", "")
CONAN_OLD("stat64", "")
CONAN_OLD("fstat64", "")
#endif
#endif
