//! ipvsadm
