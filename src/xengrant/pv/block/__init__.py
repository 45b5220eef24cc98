"""Block devices (Xen public/io/blkif.h), back end and front end."""
