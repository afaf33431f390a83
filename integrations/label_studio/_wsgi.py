"""The backend as a WSGI application, under the name that Label Studio's own images and commands expect."""

from label_studio_ml.api import init_app
from model import Maskfleet

app = init_app(Maskfleet)
