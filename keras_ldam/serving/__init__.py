"""An exported model, asked line by line or over HTTP.

    from keras_ldam.serving import predictor, server

Neither needs the Keras model or its classes. `predictor` needs TensorFlow, and tensorflow_text for
models of texts; `server` needs kserve as well. Without them `MissingExtraError` is raised.
"""
