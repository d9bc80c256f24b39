"""Bounds in a ball around each image."""

from dynzoo.certificates.local.certificate import LocalCertificate as LocalCertificate
from dynzoo.certificates.local.certificate import certify_local as certify_local
