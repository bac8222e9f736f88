//! `keelson pause`: the process that keeps a pod's namespaces alive, PID 1 of every sandbox.
//!
//! It sleeps until told to stop and reaps orphans, which land here when a pod shares its process namespace.
//! It runs before any runtime or allocator-heavy set-up, because there is one per pod: what it does not touch
//! costs no memory.

/// Blocks until SIGINT or SIGTERM arrives, reaping children meanwhile. Returns the exit code.
pub fn run() -> i32 {
    // SAFETY: plain libc calls on a local, initialised signal set; no other thread exists yet, so blocking the
    // signals here blocks them for the whole process, which `sigwait` requires.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGCHLD] {
            libc::sigaddset(&mut set, signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
            return 1;
        }
        loop {
            let mut signal = 0;
            if libc::sigwait(&set, &mut signal) != 0 {
                return 2;
            }
            match signal {
                libc::SIGCHLD => {
                    while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
                }
                _ => return 0,
            }
        }
    }
}
