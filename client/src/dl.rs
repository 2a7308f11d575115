//! Libraries in the hands of the dynamic loader.

use std::ffi::{c_void, CStr, CString};
#[cfg(all(target_os = "linux", not(feature = "linked")))]
use std::{os::unix::ffi::OsStrExt, path::Path};

/// What `dlopen` gave.
pub struct Handle(*mut c_void);

impl Handle {
    /// Loads the library at `path`.
    #[cfg(not(target_os = "android"))]
    pub fn open(path: &str) -> Result<Handle, String> {
        let path = CString::new(path).map_err(|error| error.to_string())?;
        unsafe { Handle::checked(libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL)) }
    }

    /// All that the program was started with.
    #[cfg(all(target_os = "linux", not(feature = "linked")))]
    pub fn of_all() -> Handle {
        Handle(libc::RTLD_DEFAULT)
    }

    /// The library that was loaded from `path`, if it still is; it stays so until [`Handle::close`].
    #[cfg(all(target_os = "linux", not(feature = "linked")))]
    pub fn of_loaded(path: &Path) -> Option<Handle> {
        let path = CString::new(path.as_os_str().as_bytes()).ok()?;
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        (!handle.is_null()).then_some(Handle(handle))
    }

    #[cfg(all(target_os = "linux", not(feature = "linked")))]
    pub fn close(self) {
        unsafe { libc::dlclose(self.0) };
    }

    /// What a function of the loader has returned, or else what went wrong.
    ///
    /// # Safety
    /// The call was this thread's last one to the loader.
    pub unsafe fn checked(returned: *mut c_void) -> Result<Handle, String> {
        if !returned.is_null() {
            return Ok(Handle(returned));
        }
        let error = libc::dlerror();
        if error.is_null() {
            return Err("the loader does not say why".to_owned());
        }
        Err(CStr::from_ptr(error).to_string_lossy().into_owned())
    }

    /// Run-time address of a symbol that the library exports.
    pub fn symbol(&self, name: &str) -> Option<u64> {
        let name = CString::new(name).ok()?;
        let found = unsafe { libc::dlsym(self.0, name.as_ptr()) } as u64;
        (found != 0).then_some(found)
    }
}
