from .channels import trace
from .budget import threshold
from . import models
